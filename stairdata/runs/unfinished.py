"""What was built before of what is asked for, seen without beginning anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stairdata.runs.options import BuildOptions
from stairdata.runs.row_journal import JOURNAL
from stairdata_schemas.artifacts import Artifact, versions
from stairdata_schemas.building import WORK, BuildPlan, find_finished, find_unfinished
from stairdata_schemas.errors import StairDataError
from stairdata_schemas.files import read_journal


def find_before(kind: str, plan: Callable[[], BuildPlan], options: BuildOptions) -> Artifact | Path | None:
    """Return the artifact that a build would return, or the folder that it would go on from.

    Args:
        kind: of the artifact.
        plan: makes the plan, which may take the hashing of a model; called only where something was built.
        options: where, and whether to start over.
    """
    if options.fresh or not versions(options.root, kind):
        return None
    try:
        made = plan()
    except StairDataError:  # without its model, say, it can't have begun; building it tells what is amiss
        return None
    found = find_finished(made, options.root) or find_unfinished(made, options.root)
    folder = found.folder if isinstance(found, Artifact) else found
    return found if folder and options.version in {None, folder.name} else None


def rows_in(folder: Path | None) -> set[str]:
    """Return the keys of the rows that an unfinished build has."""
    return {record["key"] for record in read_journal(folder / WORK / JOURNAL)} if folder else set()


def words_on(kind: str, folder: Path | None, rows: int) -> str:
    """Say that rows are there already; empty where nothing is begun."""
    return f" left; {kind}@{folder.name} is unfinished and has {rows:,} already" if folder else ""
