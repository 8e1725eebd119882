"""Writing artifacts: one folder a version, resumable, and complete only when its manifest stands there.

A build works in `<root>/<kind>/<version>/.build/`: `build.json` says what is being built (so that the next run
knows whether it is the same), generators keep journals of finished work there, and data files are written there
whole before they are renamed into place. The manifest comes last; then `.build/` goes.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from stairdata_schemas.artifacts import Artifact, Version, open_artifact, parse_version, versions
from stairdata_schemas.card import render_card
from stairdata_schemas.errors import ArtifactError, BuildError, BuildLockedError, QuarantineError, UsageError, quote
from stairdata_schemas.files import Journal, sync_file, sync_folder, write_atomic
from stairdata_schemas.kinds import SCHEMA_VERSION, arrow_schema, row_schema
from stairdata_schemas.licenses import strictest
from stairdata_schemas.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ModelIdentity,
    Parent,
    Usage,
    content_hash,
    fingerprint,
    now,
    read_manifest,
    sha256_of_file,
)

WORK = ".build"
_log = logging.getLogger("stairdata")
SHARD_BYTES = 256 * 1024**2
ROW_GROUP_ROWS = 2048
QUARANTINE_SCHEMA = pl.Schema(
    {
        "source": pl.String,
        "row": pl.Int64,
        "rule": pl.String,
        "field": pl.String,
        "raw": pl.String,
        "detail": pl.String,
    }
)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What is to be built: everything that decides the rows."""

    kind: str
    generator: str
    configuration: dict[str, Any]
    """The part of the resolved configuration that can change rows."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The rest of it (concurrency, URLs, time-outs): recorded in the manifest, not in the fingerprint."""
    parents: list[Parent] = field(default_factory=list)
    models: list[ModelIdentity] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    license: str | None = None
    """Licence of the inputs that are no artifacts; those of parents are known from the parents."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.generator, self.configuration, self.parents, self.models, self.inputs)

    def as_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "generator": self.generator,
            "configuration": self.configuration,
            "parents": [parent.model_dump() for parent in self.parents],
            "models": [model.model_dump() for model in self.models],
            "inputs": self.inputs,
        }


@dataclass(frozen=True, slots=True)
class Refused:
    """One input row that was refused."""

    source: str
    row: int
    rule: str
    raw: str
    field: str = ""
    detail: str = ""
    """More on the rule: which row it repeats, say."""


@dataclass(slots=True)
class Report:
    """What a generator tells its manifest besides the rows."""

    outcomes: dict[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


class Build:
    """A build under way; use it as a context manager, it holds the folder's lock."""

    def __init__(self, folder: Path, version: Version, plan: BuildPlan, lock: FileLock) -> None:
        self.folder = folder
        self.version = version
        self.plan = plan
        self.work = folder / WORK
        self._lock = lock
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with FileLock(self.folder.parent / ".lock"):  # nobody begins here meanwhile
            if error is not None and not self._has_work():
                shutil.rmtree(self.folder)  # nothing to go on from: the version is free again
            self._lock.release()

    def _has_work(self) -> bool:
        """Tell whether something is there besides the plan: rows, journals, logs."""
        there = (*self.folder.iterdir(), *self.work.glob("*"))
        kept = {path.name for path in there if path.is_dir() or path.stat().st_size}  # an empty journal is no work
        return bool(kept - {".lock", WORK, "build.json"})

    @property
    def reference(self) -> str:
        return f"{self.plan.kind}@{self.version}"

    def journal(self, name: str) -> Journal:
        """Open a journal of finished work that the next run of this build finds again."""
        return Journal(self.work / name)

    def finish(
        self,
        frames: Iterable[pl.DataFrame],
        refused: Iterable[Refused] = (),
        report: Report | None = None,
        max_quarantine: float = 0.05,
        by_design: Collection[str] = (),
    ) -> Artifact:
        """Validate and write the rows, the quarantine, the card, and last the manifest.

        Args:
            frames: the rows, in pieces that fit in memory; those that break the schema go to quarantine.
            refused: input rows that never became rows; looked at after the frames, which may still add to it.
            report: what else the manifest should say.
            max_quarantine: largest share of refused rows among all.
            by_design: rules that sound rows break (a duplicate, another language): counted, but not in that share.

        Raises:
            QuarantineError: more rows were refused; data and quarantine stay in place without a manifest.
            BuildError: no row is left.
        """
        report = report or Report()
        broken: list[Refused] = []
        writer = ShardWriter(self.work / "data", self.plan.kind)
        position = 0
        for frame in frames:
            writer.write(_sound_rows(self.plan.kind, frame, position, broken))
            position += len(frame)
        entries = writer.close()
        refusals = [*refused, *broken]  # not before: whoever makes the frames may refuse rows on the way
        self._check_keys(writer.folder)
        _write_quarantine(self.work / "quarantine", refusals)
        rules = dict(sorted(Counter(refusal.rule for refusal in refusals).items()))
        manifest = self._manifest(entries, rules, report)
        self._move_into_place(manifest)
        self._check_share(manifest, refusals, by_design, max_quarantine)
        write_atomic(self.folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
        shutil.rmtree(self.work, ignore_errors=True)  # a process that finds the manifest clears it away, too
        return open_artifact(self.folder)

    def _manifest(self, files: list[FileEntry], quarantine: dict[str, int], report: Report) -> Manifest:
        return Manifest(
            kind=self.plan.kind,
            version=str(self.version),
            schema_version=SCHEMA_VERSION,
            created_at=now(),
            stairdata_version=distribution_version("stairdata"),
            git_commit=git_commit(),
            generator=self.plan.generator,
            configuration=self.plan.configuration | self.plan.settings,
            fingerprint=self.plan.fingerprint,
            content_hash=content_hash(files),
            models=self.plan.models,
            seeds=self.plan.seeds,
            parents=self.plan.parents,
            license=self._license(),
            rows=sum(entry.rows for entry in files),
            outcomes=report.outcomes,
            quarantine=quarantine,
            usage=report.usage,
            seconds=round(time.monotonic() - self._started, 3),
            notes=report.notes,
            details=report.details,
            files=files,
        )

    def _license(self) -> str | None:
        known = [parent.license for parent in self.plan.parents]
        return strictest([*known, self.plan.license] if self.plan.license or self.plan.inputs else known)

    def _check_keys(self, data: Path) -> None:
        keys = row_schema(self.plan.kind).primary_key()
        rows = pl.scan_parquet(data / "*.parquet").group_by(keys).len().filter(pl.col("len") > 1)
        repeated = rows.collect(engine="streaming")
        if len(repeated):
            raise BuildError(
                f"{self.reference}: {len(repeated)} keys stand in several rows, such as {repeated[keys[0]][0]!r}"
            )

    def _move_into_place(self, manifest: Manifest) -> None:
        for name in ("data", "quarantine"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if (self.work / name).exists():
                (self.work / name).rename(self.folder / name)
        write_atomic(self.folder / "README.md", render_card(manifest))

    def _check_share(
        self, manifest: Manifest, refusals: list[Refused], by_design: Collection[str], max_quarantine: float
    ) -> None:
        total = manifest.rows + sum(manifest.quarantine.values())
        counts = ", ".join(f"{rule} {count}" for rule, count in manifest.quarantine.items())
        if total == 0:
            raise BuildError(f"{self.reference}: the input has no rows; nothing was built")
        if manifest.rows == 0:
            raise BuildError(
                f"{self.reference}: all {total} rows were refused ({counts}), {_first(refusals)}; "
                f"see {self.folder / 'quarantine'}"
            )
        faults = [each for each in refusals if each.rule not in by_design]
        if len(faults) / total > max_quarantine:
            raise QuarantineError(
                f"{self.reference}: {len(faults)} of {total} rows were refused ({counts}), more than "
                f"{max_quarantine:.0%}, {_first(faults)}; see {self.folder / 'quarantine'}, "
                "mend the input and build again, or raise --max-quarantine"
            )


def _first(refusals: list[Refused]) -> str:
    """Say where the first refused row is, so that nobody has to open the quarantine to find it."""
    first = refusals[0]
    field = f", field {first.field}" if first.field else ""
    return f"the first is row {first.row} of {quote(first.source)} ({first.rule}{field})"


def find_finished(plan: BuildPlan, root: Path) -> Artifact | None:
    """Return the newest finished artifact of a plan."""
    for version in reversed(versions(root, plan.kind)):
        target = root / plan.kind / str(version)
        if (target / MANIFEST_NAME).is_file() and _finished_fingerprint(target) == plan.fingerprint:
            return open_artifact(target)
    return None


def find_unfinished(plan: BuildPlan, root: Path) -> Path | None:
    """Return the folder of the newest unfinished build of a plan."""
    for version in reversed(versions(root, plan.kind)):
        target = root / plan.kind / str(version)
        is_finished = (target / MANIFEST_NAME).is_file()
        if not is_finished and _work_in_progress(target).get("fingerprint") == plan.fingerprint:
            return target
    return None


def begin_build(plan: BuildPlan, root: Path, version: str | None = None, *, fresh: bool = False) -> Artifact | Build:
    """Find or make the folder for a build.

    An unfinished build of the same fingerprint continues, a finished one is returned as it is; otherwise a new
    version is begun: the one asked for, or the next MINOR.

    Raises:
        UsageError: a version that the schema does not allow, or that is finished with other content.
        BuildLockedError: another process builds there.
    """
    wanted = _check_major(parse_version(version)) if version else None
    folder = root / plan.kind
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        chosen = wanted or _matching_version(folder, plan, fresh=fresh) or _next_version(root, plan.kind)
        target = folder / str(chosen)
        if (target / MANIFEST_NAME).is_file():
            return _finished(target, plan)
        if wanted is None and not target.exists():
            _warn_of_another(folder, chosen, plan)
        target.mkdir(exist_ok=True)
        lock = _lock(target)
        try:
            _open_work(target, plan, fresh=fresh)
        except BaseException:
            lock.release()
            raise
    return Build(target, chosen, plan, lock)


def _warn_of_another(folder: Path, chosen: Version, plan: BuildPlan) -> None:
    """Say that a new version is begun beside an unfinished build, which a changed recipe does not continue."""
    newest = next(reversed(versions(folder.parent, plan.kind)), None)
    known = _work_in_progress(folder / str(newest))
    if known and not (folder / str(newest) / MANIFEST_NAME).is_file():
        _log.warning(
            "warning: %s@%s is an unfinished build of another recipe (it differs in %s); this one begins %s",
            plan.kind,
            newest,
            _changes(known.get("configuration", {}), plan),
            chosen,
        )


def _check_major(version: Version) -> Version:
    if version.major != SCHEMA_VERSION:
        raise UsageError(f"version {version}: MAJOR is the schema's version, {SCHEMA_VERSION}")
    return version


def _matching_version(folder: Path, plan: BuildPlan, *, fresh: bool) -> Version | None:
    for version in reversed(versions(folder.parent, plan.kind)):
        target = folder / str(version)
        if version.major != SCHEMA_VERSION:
            continue
        if (target / MANIFEST_NAME).is_file():
            if not fresh and _finished_fingerprint(target) == plan.fingerprint:
                return version
        elif _work_in_progress(target).get("fingerprint") == plan.fingerprint:
            return version
    return None


def _finished_fingerprint(target: Path) -> str | None:
    try:
        return read_manifest(target).fingerprint
    except ArtifactError:  # whose it is can't be told; it must not stand in the way of other builds
        return None


def _next_version(root: Path, kind: str) -> Version:
    same_major = [version for version in versions(root, kind) if version.major == SCHEMA_VERSION]
    if same_major and _is_untouched(root / kind / str(same_major[-1])):
        return same_major[-1]
    return Version(SCHEMA_VERSION, same_major[-1].minor + 1 if same_major else 0, 0)


def _is_untouched(target: Path) -> bool:
    """Tell whether a build was killed here before it wrote down what it builds."""
    return all(path.is_dir() or path.name == ".lock" or path.suffix == ".tmp" for path in target.rglob("*"))


def _finished(target: Path, plan: BuildPlan) -> Artifact:
    artifact = open_artifact(target)
    if artifact.manifest.fingerprint != plan.fingerprint:
        changed = _changes(artifact.manifest.configuration, plan)
        raise UsageError(
            f"{artifact.reference} is finished and immutable, and differs from what was asked for in {changed}; "
            "leave --version out to make the next version"
        )
    shutil.rmtree(target / WORK, ignore_errors=True)  # left by a kill between the manifest and the clean-up
    return artifact


def _lock(target: Path) -> FileLock:
    lock = FileLock(target / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = _work_in_progress(target).get("pid", "unknown")
        raise BuildLockedError(f"process {owner} is building {target}; wait for it, or end it") from error
    return lock


def _open_work(target: Path, plan: BuildPlan, *, fresh: bool) -> None:
    import os

    work = target / WORK
    known = _work_in_progress(target)
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    elif known and known.get("fingerprint") != plan.fingerprint:
        changed = _changes(known.get("configuration", {}), plan)
        raise UsageError(
            f"{target} holds an unfinished build of another recipe (it differs in {changed}); "
            "finish that one, name another --version, or start over with --fresh"
        )
    work.mkdir(exist_ok=True)
    for temporary in (*target.glob(".*.tmp"), *work.glob(".*.tmp")):
        temporary.unlink()
    for leftover in ("data", "quarantine"):
        shutil.rmtree(work / leftover, ignore_errors=True)
    write_atomic(work / "build.json", json.dumps(plan.as_json() | {"pid": os.getpid()}, indent=2))


def _work_in_progress(target: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads((target / WORK / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known


def _changes(configuration: dict[str, Any], plan: BuildPlan) -> str:
    """Say what sets an earlier build apart from a plan."""
    return ", ".join(_differences(configuration, plan.configuration)) or "its inputs"


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(set(old) & set(new)):
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key} ({old[key]!r} then, {new[key]!r} now)"


class ShardWriter:
    """Writes frames of one kind into parquet shards of about 256 MB, zstd, content-defined chunking."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._schema = arrow_schema(kind)
        self._rows: list[int] = []
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True)

    def write(self, frame: pl.DataFrame) -> None:
        """Append rows; they have to be of the kind's schema already."""
        if frame.is_empty() and self._rows:
            return
        if self._writer is None:
            self._open()
        assert self._writer is not None
        self._writer.write_table(frame.to_arrow().cast(self._schema), row_group_size=ROW_GROUP_ROWS)
        self._rows[-1] += len(frame)
        if self._path(len(self._rows) - 1).stat().st_size >= SHARD_BYTES:
            self._close_shard()

    def close(self) -> list[FileEntry]:
        """Finish the last shard, give all their final names, and return them."""
        if not self._rows:
            self._open()
        self._close_shard()
        entries = [self._rename(index) for index in range(len(self._rows))]
        sync_folder(self.folder)
        return entries

    def _open(self) -> None:
        self._rows.append(0)
        self._writer = pq.ParquetWriter(
            self._path(len(self._rows) - 1),
            self._schema,
            compression="zstd",
            use_content_defined_chunking=True,
        )

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            sync_file(self._path(len(self._rows) - 1))

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.parquet"

    def _rename(self, index: int) -> FileEntry:
        path = self.folder / f"train-{index:05d}-of-{len(self._rows):05d}.parquet"
        self._path(index).rename(path)
        return FileEntry(
            path=f"data/{path.name}",
            sha256=sha256_of_file(path),
            bytes=path.stat().st_size,
            rows=self._rows[index],
        )


def _sound_rows(kind: str, frame: pl.DataFrame, first: int, refusals: list[Refused]) -> pl.DataFrame:
    """Return the rows that hold, and append the others; `first` is the number of the frame's first row."""
    schema = row_schema(kind)
    result, failure = schema.filter(frame, cast=True)
    if len(result) != len(frame):
        invalid = failure.details()
        rules = [column for column in invalid.columns if column not in schema.column_names()]
        # a key that stands in two rows is refused in both, so that a refused row's key is in no sound row
        keys = schema.primary_key()
        numbers = frame.with_row_index("number", first).join(result, on=keys, how="anti", maintain_order="left")
        for number, row in zip(numbers["number"], invalid.iter_rows(named=True), strict=True):
            rule = next(name for name in rules if row[name] == "invalid")
            raw = json.dumps({name: row[name] for name in schema.column_names()}, ensure_ascii=False, default=str)
            refusals.append(Refused(kind, number, rule, raw, field=rule.partition("|")[0]))
    return result


def _write_quarantine(folder: Path, refusals: list[Refused]) -> None:
    if not refusals:
        return
    folder.mkdir(parents=True)
    columns = {name: [_storable(getattr(refusal, name)) for refusal in refusals] for name in QUARANTINE_SCHEMA}
    path = folder / "refused.parquet"
    pl.DataFrame(columns, schema=QUARANTINE_SCHEMA).write_parquet(path, compression="zstd")
    sync_file(path)


def _storable(value: str | int) -> str | int:
    """Escape what UTF-8 can't hold: lone surrogates, which JSON escapes may bring in."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


@cache
def git_commit() -> str | None:
    """Return the commit that this package is checked out from, if it is, with `-dirty` behind a changed tree."""
    here = Path(__file__).parent
    try:
        top = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__],  # noqa: S607
            capture_output=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return top.stdout.strip() or None
