"""From one schema version to the next: a pure function a step, and an artifact of its own at the end.

A finished version is never changed. A migrated artifact is a new one, of the current MAJOR, whose parent is the old
one; running the migration again finds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from stairdata_schemas.artifacts import Artifact, iterate_frames
from stairdata_schemas.building import BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import ArtifactError, quote
from stairdata_schemas.kinds import SCHEMA_VERSION
from stairdata_schemas.manifest import Manifest

MigrationStep = Callable[[pl.DataFrame], pl.DataFrame]
MIGRATIONS: dict[str, dict[int, MigrationStep]] = {}
"""By kind and the version it starts from: rows of that version to rows of the next. Version 1 is the first there is."""
GENERATOR = "migration/1"
_DATA_FILE = re.compile(r"data/train-\d{5}-of-\d{5}\.parquet", re.ASCII)


def check_paths(manifest: Manifest, where: str) -> None:
    """Refuse a manifest with a path that is no data file's; nothing that leaves the folder is ever opened.

    Raises:
        ArtifactError: such a path, twice the same one, or none at all.
    """
    paths = [entry.path for entry in manifest.files]
    wrong = next((path for path in paths if not _DATA_FILE.fullmatch(path)), None)
    if wrong is not None:
        raise ArtifactError(f"{where}: its manifest lists {quote(wrong)}, which is not a valid path of a data file")
    if not paths or len(set(paths)) != len(paths):
        raise ArtifactError(f"{where}: its manifest lists {'a file twice' if paths else 'no data file'}")


def steps(kind: str, version: int) -> list[MigrationStep]:
    """Return the steps from a schema version to the current one.

    Raises:
        ArtifactError: newer than the current one, or no path.
    """
    if version > SCHEMA_VERSION:
        raise ArtifactError(f"schema version {version} is newer than {SCHEMA_VERSION}; upgrade stairdata")
    known = MIGRATIONS.get(kind, {})
    missing = next((start for start in range(version, SCHEMA_VERSION) if start not in known), None)
    if missing is not None:
        raise ArtifactError(
            f"no migration of {kind} from schema version {missing} to {missing + 1}; build it again from its source"
        )
    return [known[start] for start in range(version, SCHEMA_VERSION)]


def migrate(artifact: Artifact, root: Path) -> Artifact:
    """Write an artifact of an older schema version again under the current one.

    Raises:
        ArtifactError: no path from its version to the current one.
        BuildError: rows that the current schema refuses.
    """
    manifest = artifact.manifest
    chain = steps(manifest.kind, manifest.schema_version)
    configuration = {"from_schema": manifest.schema_version, "to_schema": SCHEMA_VERSION}
    plan = BuildPlan(manifest.kind, GENERATOR, configuration, parents=[artifact.as_parent()], models=manifest.models)
    note = f"migrated from schema version {manifest.schema_version}; the rows were made as {artifact.reference} was"
    report = Report(outcomes=manifest.outcomes, notes=[*manifest.notes, note], details=manifest.details)
    content = BuildContent(_migrated(artifact, chain), report=report)
    return build_artifact(plan, lambda _: content, root, max_quarantine=0.0)


def _migrated(artifact: Artifact, chain: list[MigrationStep]) -> Iterator[pl.DataFrame]:
    for path in artifact.data_files:
        for frame in iterate_frames(path):
            for step in chain:
                frame = step(frame)  # noqa: PLW2901 - each step takes what the last one gave
            yield frame
