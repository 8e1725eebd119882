"""One artifact out of all shards of a build: the same rows in the same order as the build in one piece has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.runs.shards.shard import owners
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact, iterate_frames, scan_files
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import ArtifactError, UsageError
from stairdata_schemas.manifest import SHARD, BuildUsage, ModelIdentity, Parent
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
    first = shards[0].manifest
    whole: Json = _noted(shards[0])["whole"]
    plan = BuildPlan(
        first.kind,
        whole["generator"],
        whole["configuration"],
        settings={
            name: value
            for name, value in first.configuration.items()
            if name not in whole["configuration"] and name != SHARD
        },
        parents=[Parent.model_validate(parent) for parent in whole["parents"]],
        models=[ModelIdentity.model_validate(model) for model in whole["models"]],
        inputs=whole["inputs"],
        seeds=first.seeds,
        license=first.license,
    )

    def content(_: Build) -> BuildContent:
        refused = sorted((row for shard in shards for row in _quarantine(shard)), key=lambda row: row.row)
        return BuildContent(_rows_in_order(shards), refused, _report(shards))

    return build_artifact(plan, content, root, version, max_quarantine=max_quarantine)


def _noted(shard: Artifact) -> Json:
    noted: Json = shard.manifest.details[SHARD]
    return noted


def _in_order(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Check that these are all shards of one build, and return them by their index."""
    for artifact in artifacts:
        if SHARD not in artifact.manifest.details:
            raise UsageError(f"{artifact.reference} is not a shard; build shards with --shard I/N")
    if not artifacts:
        raise UsageError("no shards are given; name all of them, such as trees@1.0.0 trees@1.1.0")
    wanted = _noted(artifacts[0])
    for artifact in artifacts[1:]:
        noted = _noted(artifact)
        if noted["whole"]["fingerprint"] != wanted["whole"]["fingerprint"] or noted["count"] != wanted["count"]:
            raise UsageError(
                f"{artifacts[0].reference} is shard {wanted['index']}/{wanted['count']} and {artifact.reference} shard "
                f"{noted['index']}/{noted['count']} of another build (`stairdata diff` shows what differs); join the "
                "shards of one recipe, from the same inputs"
            )
    known: dict[int, Artifact] = {}
    for artifact in artifacts:
        index = _noted(artifact)["index"]
        if index in known:
            raise UsageError(
                f"{known[index].reference} and {artifact.reference} are both shard {index}/{wanted['count']}; give one "
                "of them"
            )
        known[index] = artifact
    missing = [str(index) for index in range(1, wanted["count"] + 1) if index not in known]
    if missing:
        shown = ", ".join(missing[:10]) + (" and others" if len(missing) > 10 else "")
        raise UsageError(f"of {wanted['count']} shards {shown} {'is' if len(missing) == 1 else 'are'} missing")
    return [known[index] for index in sorted(known)]


def _quarantine(shard: Artifact) -> list[QuarantineRow]:
    """Return the refused rows of a shard; none where it was pulled, since they are not published."""
    files = quarantine_files(shard.folder)
    return [QuarantineRow(**row) for row in scan_files(files).collect().to_dicts()] if files else []


def _refused(shard: Artifact) -> dict[int, int]:
    """Return how many units of which input rows have no row.

    Raises:
        ArtifactError: other rows broke the schema, so that it can't be told which units they were.
    """
    refused = {int(number): count for number, count in _noted(shard)["refused"].items()}
    if sum(refused.values()) != sum(shard.manifest.quarantine.values()):
        raise ArtifactError(
            f"{shard.reference}: some of its rows broke the schema, so that the places of the others are not known; "
            "build this shard again"
        )
    return refused


def _rows_in_order(shards: Sequence[Artifact]) -> Iterator[pl.DataFrame]:
    """Yield the rows of all shards in the order of the input, in frames of bounded size."""
    noted = _noted(shards[0])
    refused = [_refused(shard) for shard in shards]
    readers = [ShardRows(shard) for shard in shards]
    pieces: list[pl.DataFrame] = []
    for owner, numbers in groupby(enumerate(owners(noted, shards[0].manifest.seeds)), key=lambda each: each[1]):
        wanted = sum(noted["units_of_an_input"] - refused[owner - 1].get(number, 0) for number, _ in numbers)
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


def _report(shards: Sequence[Artifact]) -> Report:
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
    merged = _merge(details) | {"shards": [shard.as_parent().model_dump(exclude_none=True) for shard in shards]}
    notes = list(dict.fromkeys(note for manifest in manifests for note in manifest.notes))
    if pulled := [shard.reference for shard in shards if shard.manifest.quarantine and not _quarantine(shard)]:
        notes.append(f"the refused rows of {', '.join(pulled)} are not in the quarantine: they were not published")
    return Report(_merge([manifest.outcomes for manifest in manifests]), usage, notes, merged)


def _merge(parts: Sequence[Any]) -> Any:
    """Add up numbers, also inside of mappings; lists are put together unless they are equal."""
    first = parts[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _merge([part[name] for part in parts if name in part]) for name in names}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(parts)
    if isinstance(first, list) and any(part != first for part in parts):
        return [item for part in parts for item in part]
    return first
