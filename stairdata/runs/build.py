"""From a plan and what makes its rows to a finished artifact, as the options of a command say."""

from __future__ import annotations

from collections.abc import Callable

from stairdata.runs.options import BuildOptions
from stairdata.runs.shards.shard import with_shard
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, build_artifact, find_finished
from stairdata_schemas.errors import BuildError


class NotBuiltError(BuildError):
    """What was to be looked up is not finished."""


def finished_or_error(plan: BuildPlan, options: BuildOptions) -> Artifact:
    """Return the finished artifact of a plan.

    Raises:
        NotBuiltError: there is none.
    """
    found = None if options.fresh else find_finished(plan, options.root)
    if found is None:
        raise NotBuiltError(f"{plan.kind} of this recipe is not built; the same command without --dry-run builds it")
    return found


def build_as_told(
    plan: BuildPlan,
    make_content: Callable[[Build], BuildContent],
    options: BuildOptions,
    check: Callable[[], None] = lambda: None,
) -> Artifact:
    """Build the artifact of a plan; one that is finished already is returned as it is.

    Args:
        plan: what is built.
        make_content: makes its rows.
        options: where, and how much.
        check: called before anything is written, where something is left to do.

    Raises:
        NotBuiltError: it is not finished, and nothing is to be built.
        StairDataError: as `build_artifact` says.
    """
    plan = with_shard(plan, options.shard)
    if options.only_finished:
        return finished_or_error(plan, options)
    if not is_finished(plan, options):
        check()
    return build_artifact(
        plan,
        make_content,
        options.root,
        options.version,
        fresh=options.fresh,
        max_quarantine=options.max_quarantine,
    )


def is_finished(plan: BuildPlan, options: BuildOptions) -> bool:
    """Tell whether building a plan would return what is there already."""
    found = None if options.fresh else find_finished(plan, options.root)
    return found is not None and options.version in (None, found.folder.name)
