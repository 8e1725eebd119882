"""One artifact out of all shards of a build: the same rows in the same order as the build in one piece has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.runs.shards.shard import ShardNote, owner_of, seed_of
from stairdata_schemas.artifacts import Artifact, iterate_frames, scan_files
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import ArtifactError, UsageError
from stairdata_schemas.manifest import SHARD, BuildUsage, Manifest
from stairdata_schemas.quarantine import QuarantineRow, quarantine_files

FRAME_ROWS = 64


def join_shards(
    artifacts: Sequence[Artifact], root: Path, version: str | None = None, max_quarantine: float = 0.05
) -> Artifact:
    """Join the shards of a build, in whatever order they are given.

    The result has the fingerprint of the build in one piece, so that the same recipe without `--shard` finds it.

    Args:
        artifacts: all shards of one build.
        root: folder of the artifacts.
        version: default: the next one.
        max_quarantine: largest share of refused rows.

    Raises:
        UsageError: what is given is no shard, of different builds, there twice, or not all.
        ArtifactError: a shard whose rows and refused rows are not those of its input.
        QuarantineError: more rows were refused than `max_quarantine`.
    """
    shards = _in_order(artifacts)
    first, whole = shards[0].manifest, shards[0].note.whole
    plan = BuildPlan(
        first.kind,
        whole.generator,
        whole.configuration,
        settings={
            name: value
            for name, value in first.configuration.items()
            if name not in whole.configuration and name != SHARD
        },
        parents=whole.parents,
        models=whole.models,
        inputs=whole.inputs,
        seeds=first.seeds,
        license=first.license,
    )

    def content(_: Build) -> BuildContent:
        refused = [row for shard in shards for row in shard.quarantine()]
        refused.sort(key=lambda row: row.row if row.source == first.kind else -1)  # first what never became a unit
        return BuildContent(_rows_in_order(shards), refused, _report(shards))

    return build_artifact(plan, content, root, version, max_quarantine=max_quarantine)


class _NotedShard(NamedTuple):
    """A shard and what its manifest says of it."""

    artifact: Artifact
    note: ShardNote

    @property
    def reference(self) -> str:
        return self.artifact.reference

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    def quarantine(self) -> list[QuarantineRow]:
        """Return the refused rows; none where the shard was pulled, since they are not published."""
        files = quarantine_files(self.artifact.folder)
        return [QuarantineRow(**row) for row in scan_files(files).collect().to_dicts()] if files else []


def _in_order(artifacts: Sequence[Artifact]) -> list[_NotedShard]:
    """Check that these are all shards of one build, and return them by their index."""
    for artifact in artifacts:
        if SHARD not in artifact.manifest.details:
            raise UsageError(f"{artifact.reference} is not a shard; build shards with --shard I/N")
    if not artifacts:
        raise UsageError("no shards are given; name all of them, such as trees@1.0.0 trees@1.1.0")
    shards = [_NotedShard(artifact, ShardNote.read(artifact)) for artifact in artifacts]
    first, wanted = shards[0], shards[0].note
    for shard in shards[1:]:
        note = shard.note
        if note.whole.fingerprint != wanted.whole.fingerprint or note.count != wanted.count:
            raise UsageError(
                f"{first.reference} is shard {wanted.index}/{wanted.count} and {shard.reference} shard "
                f"{note.index}/{note.count} of another build (`stairdata diff` shows what differs); join the "
                "shards of one recipe, from the same inputs"
            )
    known: dict[int, _NotedShard] = {}
    for shard in shards:
        index = shard.note.index
        if index in known:
            raise UsageError(
                f"{known[index].reference} and {shard.reference} are both shard {index}/{wanted.count}; give one "
                "of them"
            )
        known[index] = shard
    missing = [str(index) for index in range(1, wanted.count + 1) if index not in known]
    if missing:
        shown = ", ".join(missing[:10]) + (" and others" if len(missing) > 10 else "")
        raise UsageError(f"of {wanted.count} shards {shown} {'is' if len(missing) == 1 else 'are'} missing")
    return [known[index] for index in sorted(known)]


def _check_numbers(shards: Sequence[_NotedShard]) -> None:
    """Check that the places of all rows can be told.

    Raises:
        ArtifactError: rows broke the schema, so that it can't be told which units they were, or are too few or many.
    """
    for shard in shards:
        note = shard.note
        if note.refused_before + sum(note.refused.values()) != sum(shard.manifest.quarantine.values()):
            raise ArtifactError(
                f"{shard.reference}: some of its rows broke the schema, so that the places of the others are not "
                "known; build this shard again"
            )
    found = sum(shard.manifest.rows + sum(shard.note.refused.values()) for shard in shards)
    if found != (wanted := shards[0].note.total):
        raise ArtifactError(
            f"the shards have {found} rows, those that were refused included, and their input asks for {wanted}; "
            "`stairdata validate` each, or build them again"
        )


def _rows_in_order(shards: Sequence[_NotedShard]) -> Iterator[pl.DataFrame]:
    """Yield the rows of all shards in the order of the input, in frames of bounded size."""
    _check_numbers(shards)
    note, seed = shards[0].note, seed_of(shards[0].manifest.seeds)
    readers = [ShardRows(shard.artifact) for shard in shards]
    pieces: list[pl.DataFrame] = []
    for owner, runs in groupby(enumerate(note.runs()), key=lambda run: owner_of(run[1].group, note.count, seed)):
        refused = shards[owner - 1].note.refused
        wanted = sum(run.size - refused.get(number, 0) for number, run in runs)
        pieces += readers[owner - 1].take(wanted)
        if sum(map(len, pieces)) >= FRAME_ROWS:
            yield pl.concat(pieces)
            pieces = []
    if pieces:
        yield pl.concat(pieces)
    for reader in readers:
        reader.check_end()


class ShardRows:
    """Takes the rows of a shard one after the other."""

    def __init__(self, shard: Artifact) -> None:
        self._shard = shard
        self._frames = (frame for path in shard.data_files for frame in iterate_frames(path))
        self._left = pl.DataFrame()

    def take(self, rows: int) -> list[pl.DataFrame]:
        pieces: list[pl.DataFrame] = []
        while rows:
            if not len(self._left):
                following = next(self._frames, None)
                if following is None:
                    raise self._error("fewer rows than its input asks for")
                self._left = following
                continue
            piece, self._left = self._left.head(rows), self._left.slice(rows)
            pieces.append(piece)
            rows -= len(piece)
        return pieces

    def check_end(self) -> None:
        if len(self._left) or any(len(frame) for frame in self._frames):
            raise self._error("more rows than its input asks for")

    def _error(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self._shard.reference} has {what}; `stairdata validate` it, or build this shard again")


def _report(shards: Sequence[_NotedShard]) -> Report:
    manifests = [shard.manifest for shard in shards]
    costs = [manifest.usage.cost for manifest in manifests]
    usage = BuildUsage(
        requests=sum(manifest.usage.requests for manifest in manifests),
        prompt_tokens=sum(manifest.usage.prompt_tokens for manifest in manifests),
        completion_tokens=sum(manifest.usage.completion_tokens for manifest in manifests),
        reasoning_tokens=sum(manifest.usage.reasoning_tokens for manifest in manifests),
        cost=None if None in costs else round(sum(cost for cost in costs if cost is not None), 6),
    )
    details = [{key: value for key, value in manifest.details.items() if key != SHARD} for manifest in manifests]
    merged = _merge(details) | {
        "shards": [shard.artifact.as_parent().model_dump(exclude_none=True) for shard in shards]
    }
    notes = _join_notes([note for manifest in manifests for note in manifest.notes])
    if pulled := [shard.reference for shard in shards if shard.manifest.quarantine and not shard.quarantine()]:
        notes.append(f"the refused rows of {', '.join(pulled)} are not in the quarantine: they were not published")
    return Report(_merge([manifest.outcomes for manifest in manifests]), usage, notes, merged)


def _join_notes(notes: Sequence[str]) -> list[str]:
    """Return each note once; of those that begin with a number, and are equal but for it, one with the sum.

    So what a shard says of itself begins with its number, and what holds for the whole build does not.
    """
    sums: dict[str, int | None] = {}
    for note in notes:
        number, _, words = note.partition(" ")
        if number.isascii() and number.isdigit():
            sums[words] = (sums.get(words) or 0) + int(number)
        else:
            sums[note] = None
    return [note if number is None else f"{number} {note}" for note, number in sums.items()]


def _merge(parts: Sequence[Any]) -> Any:
    """Add up numbers, also inside of mappings; lists are put together unless they are equal and count no rows."""
    first = parts[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _merge([part[name] for part in parts if name in part]) for name in names}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(parts)
    if isinstance(first, list) and (any(part != first for part in parts) or _counts_rows(first)):
        return [item for part in parts for item in part]
    return first


def _counts_rows(items: Sequence[Any]) -> bool:
    """Tell whether these are counts of a shard's own rows, such as those without a judgement: equal ones add up."""
    return any(isinstance(item, dict) and "rows" in item for item in items)
