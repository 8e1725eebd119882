"""What a report is made from: artifacts, trainings, a run's own files, and checks of judges."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stairdata.hub.lineage import ArtifactKey, artifact_key, complete_artifacts
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact, parse_version
from stairdata_schemas.errors import InputError, UsageError, quote
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import MEBIBYTE, TooLargeError, check_json
from stairdata_schemas.kinds import KINDS

RECORD_BYTES = 64 * MEBIBYTE
TRAINING_NAME = "training.json"
JUDGE_CHECK_NAME = "check-judge.json"
_ORDER = {kind: place for place, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class ReportSources:
    """All that a report speaks of."""

    artifacts: list[Artifact]
    """By kind, and oldest version first."""
    trainings: dict[str, Json] = field(default_factory=dict)
    """What training.json of a model folder says, by the folder's name."""
    rounds: list[Row] = field(default_factory=list)
    """Rows of rounds.csv; texts."""
    stages: list[Json] = field(default_factory=list)
    """Of summary.json."""
    judge_checks: list[Json] = field(default_factory=list)
    """What `stairdata check-judge --json` printed."""
    missing: list[str] = field(default_factory=list)
    """Parents that are not on this machine."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.artifacts or self.trainings or self.rounds)

    def of_kind(self, *kinds: str) -> list[Artifact]:
        """Return the artifacts of some kinds."""
        return [artifact for artifact in self.artifacts if artifact.kind in kinds]


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look."""

    root: Path
    """Folder of the artifacts."""
    run: Path | None = None
    """Folder of a run, with rounds.csv, summary.json and models/."""
    models: Sequence[Path] = ()
    """More model folders."""
    judge_checks: Sequence[Path] = ()


def find_sources(places: Places, named: Sequence[Artifact] = ()) -> ReportSources:
    """Collect what a report is made from; nothing is fetched.

    Args:
        places: where to look.
        named: report these and what they were made from; none: all under the root.

    Raises:
        UsageError: a model folder that was never trained here, or nothing at all to report.
        InputError: a file that was named and can't be read.
    """
    roots = dict.fromkeys([places.root, *(artifact.folder.parent.parent for artifact in named)])
    here = [artifact for root in roots for artifact in complete_artifacts(root)]
    local = {artifact_key(artifact.manifest): artifact for artifact in here}
    trainings = dict(_trainings(places))
    asked = {folder.resolve().name for folder in places.models}
    if named:
        chosen, trainings, missing = _ancestry(named, local, trainings, asked)
    else:
        chosen, missing = here, _missing(here, local)
    run = places.run
    found = ReportSources(
        artifacts=sorted(chosen, key=lambda each: (_ORDER[each.kind], parse_version(each.manifest.version))),
        trainings=trainings,
        rounds=_rounds(run / "rounds.csv") if run and not named else [],
        stages=[stage for stage in _list(_read(run / "summary.json"), "stages") if isinstance(stage, dict)]
        if run
        else [],
        judge_checks=list(_judge_checks(places)),
        missing=missing,
    )
    if found.is_empty:
        where = f"{places.root}" + (f" and {run}" if run else "")
        raise UsageError(
            f"there is nothing to report: no complete artifact, training or rounds.csv in {where}; build something, or "
            "name another --root or --folder"
        )
    return found


def _ancestry(
    named: Sequence[Artifact], local: dict[ArtifactKey, Artifact], trainings: dict[str, Json], asked: Iterable[str]
) -> tuple[list[Artifact], dict[str, Json], list[str]]:
    """Follow parents, and the trainings of the models that took part or that were trained on one of the artifacts."""
    found = {artifact_key(artifact.manifest): artifact for artifact in named}
    models = {name: trainings[name] for name in asked if name in trainings}
    waiting: list[Artifact] = list(named)
    names: list[str] = [*models]
    while waiting or names:
        new: list[ArtifactKey] = []
        if waiting:
            manifest = waiting.pop().manifest
            new = [artifact_key(parent) for parent in manifest.parents]
            names += [model.name for model in manifest.models]
            own = artifact_key(manifest)
            names += [name for name, record in trainings.items() if data_key(record) == own and name not in models]
        elif (name := names.pop()) in trainings:
            models[name] = trainings[name]
            new = [data_key(trainings[name])]
            base = trainings[name].get("base_model")
            start = base.get("name") if isinstance(base, dict) else None
            names += [start] if isinstance(start, str) and start not in models else []
        fresh = [local[each] for each in new if each in local and each not in found]
        found |= {artifact_key(artifact.manifest): artifact for artifact in fresh}
        waiting += fresh
    chosen = list(found.values())
    return chosen, {name: trainings[name] for name in trainings if name in models}, _missing(chosen, local)


def _missing(artifacts: Iterable[Artifact], local: dict[ArtifactKey, Artifact]) -> list[str]:
    return sorted(
        {
            f"{parent.kind}@{parent.version} (content {parent.content_hash[:16]}), parent of {artifact.reference}"
            for artifact in artifacts
            for parent in artifact.manifest.parents
            if artifact_key(parent) not in local
        }
    )


def data_key(record: Json) -> ArtifactKey:
    """Return kind and content hash of what a model was trained on; empty where it is not known."""
    data = record.get("data")
    found = data if isinstance(data, dict) else {}
    return str(found.get("kind") or ""), str(found.get("content_hash") or "")


def _trainings(places: Places) -> Iterator[tuple[str, Json]]:
    """Yield the records of the run's model folders, and of those that were named."""
    folders = sorted((places.run / "models").glob(f"*/{TRAINING_NAME}")) if places.run else []
    for path in folders:
        record = _read(path)
        if record and not path.parent.name.endswith(".partial"):
            yield path.parent.name, record
    for folder in places.models:
        path = folder / TRAINING_NAME
        if not path.is_file():
            raise UsageError(f"{folder} has no {TRAINING_NAME}; name a model folder that `stairdata train` made")
        yield folder.resolve().name, _read_named(path)


def _judge_checks(places: Places) -> Iterator[Json]:
    own = places.run / JUDGE_CHECK_NAME if places.run else None
    if own is not None and own.is_file():
        yield _checked(own)
    for path in places.judge_checks:
        yield _checked(path)


def _checked(path: Path) -> Json:
    found = _read_named(path)
    if not isinstance(found.get("judge"), str) or "overall" not in found:
        raise InputError(f"{path} is not what `stairdata check-judge --json` prints; make it with that command")
    return found


def _read_named(path: Path) -> Json:
    """Read a JSON object that the user named.

    Raises:
        InputError: it can't be read.
    """
    try:
        text = read_text(path, RECORD_BYTES)
        check_json(text, path, "the file")
        found = json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}") from error
    except TooLargeError as error:
        raise InputError(str(error)) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {quote(found)}, and a JSON object is expected")
    return found


def _read(path: Path) -> Json:
    """Read a JSON object of a run; empty where it is not there or can't be read."""
    try:
        return _read_named(path)
    except InputError:
        return {}


def _list(part: Json, name: str) -> list[Any]:
    found = part.get(name)
    return found if isinstance(found, list) else []


def is_number(value: Any) -> bool:
    """Return whether a value of a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rounds(path: Path) -> list[Row]:
    try:
        text = read_text(path, MEBIBYTE)
    except (OSError, UnicodeDecodeError, TooLargeError):
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(text), restkey="more"))
    except csv.Error:
        return []
    return [row for row in rows if row.get("model")]
