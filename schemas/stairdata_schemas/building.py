"""Building artifacts: one folder a version, resumable, and complete once its manifest is there.

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
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import polars as pl
from filelock import FileLock, Timeout

from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact, Version, open_artifact, parse_version, scan_files, versions
from stairdata_schemas.cards.card import render_card
from stairdata_schemas.errors import ArtifactError, BuildError, BuildLockedError, QuarantineError, UsageError, quote
from stairdata_schemas.files import Journal, write_atomic
from stairdata_schemas.formats.repeated_rows import repeated_keys
from stairdata_schemas.kinds import SCHEMA_VERSION, row_schema
from stairdata_schemas.licenses import strictest
from stairdata_schemas.manifest import (
    MANIFEST_NAME,
    BuildUsage,
    FileEntry,
    Manifest,
    ModelIdentity,
    Parent,
    content_hash,
    fingerprint,
    now,
    read_manifest,
)
from stairdata_schemas.quarantine import QuarantineRow, sound_rows, write_quarantine
from stairdata_schemas.secrets.own_command import own_command
from stairdata_schemas.writing import ShardWriter

T = TypeVar("T")
WORK = ".build"
_WRITTEN = ("data", "quarantine")
"""Folders that a build fills under `.build/` and then moves into place."""
_log = logging.getLogger("stairdata")


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What is to be built: everything that decides the rows."""

    kind: str
    generator: str
    configuration: Json
    """The part of the resolved configuration that can change rows."""
    settings: Json = field(default_factory=dict)
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

    def as_json(self) -> Json:
        return {
            "fingerprint": self.fingerprint,
            "generator": self.generator,
            "configuration": self.configuration,
            "parents": [parent.model_dump() for parent in self.parents],
            "models": [model.model_dump() for model in self.models],
            "inputs": self.inputs,
        }


@dataclass(slots=True)
class Report:
    """What a generator tells its manifest besides the rows."""

    outcomes: dict[str, int] = field(default_factory=dict)
    usage: BuildUsage = field(default_factory=BuildUsage)
    notes: list[str] = field(default_factory=list)
    details: Json = field(default_factory=dict)


class BuildContent(NamedTuple):
    """What goes into an artifact.

    The fields are read in their order: while the frames are made, rows may still be refused and figures added to the
    report.
    """

    frames: Iterable[pl.DataFrame]
    """The rows, in pieces that fit in memory; those that break the schema go to quarantine."""
    refused: Iterable[QuarantineRow] = ()
    """Input rows that never became rows."""
    report: Report | None = None
    by_design: Collection[str] = ()
    """Rules that sound rows break (a duplicate, another language): counted, but not in the share of refused rows."""


class Build:
    """A build under way; use it as a context manager, it holds the folder's lock."""

    def __init__(self, folder: Path, version: Version, plan: BuildPlan, lock: FileLock) -> None:
        self.folder = folder
        self.version = version
        self.plan = plan
        self.work = folder / WORK
        self.details: Json = {}
        """What the manifest's details say besides those of the report."""
        self._lock = lock
        self._contexts = ExitStack()
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._contexts.close()
        with FileLock(self.folder.parent / ".lock"):  # nobody begins here meanwhile
            if error is not None:
                for name in _WRITTEN:  # cut where the error came; the next run writes them anew
                    shutil.rmtree(self.work / name, ignore_errors=True)
                if not self._has_work():
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

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that lasts until the build is left: what its rows are read from while they are written."""
        return self._contexts.enter_context(context)

    def journal(self, name: str) -> Journal:
        """Open a journal of finished work that the next run of this build finds again."""
        return Journal(self.work / name)

    def finish(
        self,
        frames: Iterable[pl.DataFrame],
        refused: Iterable[QuarantineRow] = (),
        report: Report | None = None,
        max_quarantine: float = 0.05,
        by_design: Collection[str] = (),
    ) -> Artifact:
        """Validate and write the rows, the quarantine, the card, and last the manifest.

        Args:
            frames: as in `BuildContent`.
            refused: as there.
            report: as there.
            max_quarantine: largest share of refused rows among all.
            by_design: as there.

        Raises:
            QuarantineError: more rows were refused; data and quarantine stay in place without a manifest.
            BuildError: no row is left.
        """
        report = report or Report()
        broken: list[QuarantineRow] = []
        writer = ShardWriter(self.work / "data", self.plan.kind)
        position = 0
        for frame in frames:
            writer.write(sound_rows(self.plan.kind, frame, position, broken))
            position += len(frame)
        entries = writer.close()
        refusals = [*refused, *broken]  # not before: whoever makes the frames may refuse rows on the way
        if not refusals and not any(entry.rows for entry in entries):  # nothing is in place yet: the version is free
            raise BuildError(f"{self.reference}: the input has no rows; nothing was built")
        self._check_keys(writer.folder)
        write_quarantine(self.work / "quarantine", refusals)
        rules = dict(sorted(Counter(refusal.rule for refusal in refusals).items()))
        manifest = self._manifest(entries, rules, report)
        self._move_into_place(manifest)
        self._check_share(manifest, refusals, by_design, max_quarantine)  # once data and quarantine can be looked at
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
            details=report.details | self.details,
            files=files,
        )

    def _license(self) -> str | None:
        known = [parent.license for parent in self.plan.parents]
        return strictest([*known, self.plan.license] if self.plan.license or self.plan.inputs else known)

    def _check_keys(self, data: Path) -> None:
        # the schema has seen one frame at a time, and a key may come back in another
        keys = row_schema(self.plan.kind).primary_key()
        repeated = repeated_keys(scan_files([*data.glob("*.parquet")]), keys)
        if len(repeated):
            raise BuildError(
                f"{self.reference}: {len(repeated)} keys occur in several rows, such as {repeated[keys[0]][0]!r}"
            )

    def _move_into_place(self, manifest: Manifest) -> None:
        for name in _WRITTEN:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if (self.work / name).exists():
                (self.work / name).rename(self.folder / name)
        write_atomic(self.folder / "README.md", render_card(manifest))

    def _check_share(
        self, manifest: Manifest, refusals: list[QuarantineRow], by_design: Collection[str], max_quarantine: float
    ) -> None:
        total = manifest.rows + sum(manifest.quarantine.values())
        counts = ", ".join(f"{rule} {count}" for rule, count in manifest.quarantine.items())
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
                "correct the input and build again, or raise --max-quarantine"
            )


def _first(refusals: list[QuarantineRow]) -> str:
    """Say where the first refused row is, so that nobody has to open the quarantine to find it."""
    first = refusals[0]
    field = f", field {first.field}" if first.field else ""
    detail = f": {first.detail}" if first.detail else ""
    return f"the first is row {first.row} of {quote(first.source)} ({first.rule}{field}{detail})"


def build_artifact(
    plan: BuildPlan,
    make_content: Callable[[Build], BuildContent],
    root: Path,
    version: str | None = None,
    *,
    fresh: bool = False,
    max_quarantine: float = 0.05,
) -> Artifact:
    """Build the artifact of a plan; one that is finished already is returned as it is.

    Args:
        plan: what is to be built.
        make_content: makes the rows; called while the build holds its folder's lock, and not at all if the artifact is
            finished. What it finds in the build's journals need not be made again.
        root: folder of the artifacts.
        version: as for `begin_build`.
        fresh: as there.
        max_quarantine: largest share of refused rows among all.

    Raises:
        UsageError: a version that the schema does not allow, or that is finished with other content.
        BuildLockedError: another process builds there.
        QuarantineError: more rows were refused.
        BuildError: no row is left.
    """
    build = begin_build(plan, root, version, fresh=fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        content = make_content(build)
        return build.finish(content.frames, content.refused, content.report, max_quarantine, content.by_design)


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
    version is begun: the one asked for, or the next MINOR. A version whose rows were refused counts as free, unless it
    is continued.

    Args:
        plan: what is to be built.
        root: folder of the artifacts.
        version: which one; default: whichever has the plan's fingerprint, else the next MINOR.
        fresh: forget what an unfinished build of the plan has done, and make a new version beside a finished one.

    Raises:
        UsageError: a version that the schema does not allow, or that is finished with other content.
        BuildLockedError: another process builds there.
    """
    wanted = _check_major(parse_version(version)) if version else None
    folder = root / plan.kind
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # or two processes would begin the same version
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
    if same_major:
        target = root / kind / str(same_major[-1])
        if _is_untouched(target) or (_is_refused(target) and not _is_locked(target)):
            return same_major[-1]
    return Version(SCHEMA_VERSION, same_major[-1].minor + 1 if same_major else 0, 0)


def _is_untouched(target: Path) -> bool:
    """Tell whether a build was killed here before it wrote down what it builds."""
    return all(path.is_dir() or path.name == ".lock" or path.suffix == ".tmp" for path in target.rglob("*"))


def _is_refused(target: Path) -> bool:
    """Tell whether too many rows of a build were refused here, and it left nothing to go on from."""
    if (target / MANIFEST_NAME).exists() or not (target / "quarantine").is_dir():
        return False
    there = (target / WORK).glob("*")
    return all(path.name == "build.json" or (path.is_file() and not path.stat().st_size) for path in there)


def _is_locked(target: Path) -> bool:
    try:
        with FileLock(target / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


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
    work = target / WORK
    known = _work_in_progress(target)
    is_other = bool(known) and known.get("fingerprint") != plan.fingerprint
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    elif is_other and _is_refused(target):
        for name in (WORK, *_WRITTEN):  # the version was never there, and another build takes it
            shutil.rmtree(target / name, ignore_errors=True)
    elif is_other:
        changed = _changes(known.get("configuration", {}), plan)
        raise UsageError(
            f"{target} holds an unfinished build of another recipe (it differs in {changed}); "
            "finish that one, name another --version, or start over with --fresh"
        )
    work.mkdir(exist_ok=True)
    for temporary in (*target.glob(".*.tmp"), *work.glob(".*.tmp")):
        temporary.unlink()
    for leftover in _WRITTEN:
        shutil.rmtree(work / leftover, ignore_errors=True)
    write_atomic(work / "build.json", json.dumps(plan.as_json() | own_command(), indent=2))


def _work_in_progress(target: Path) -> Json:
    try:
        known: Json = json.loads((target / WORK / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known


def _changes(configuration: Json, plan: BuildPlan) -> str:
    """Say what sets an earlier build apart from a plan."""
    return ", ".join(_differences(configuration, plan.configuration)) or "its inputs"


def _differences(old: Json, new: Json, prefix: str = "") -> Iterator[str]:
    for key in sorted(set(old) & set(new)):
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key} ({old[key]!r} then, {new[key]!r} now)"


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
