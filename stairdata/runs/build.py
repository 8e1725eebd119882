"""From a plan and what makes its rows to a finished artifact, as the options of a command say."""

from __future__ import annotations

from collections.abc import Callable

from stairdata.runs.options import BuildOptions
from stairdata.runs.shards.shard import with_shard
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, begin_build, find_finished
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


def build_in_rounds(
    plan: BuildPlan,
    make_content: Callable[[Build], BuildContent | None],
    options: BuildOptions,
    check: Callable[[], None] = lambda: None,
) -> Artifact | None:
    """Build the artifact of a plan in as many runs as it takes; one that is finished already is returned as it is.

    Args:
        plan: what is to be built.
        make_content: makes the rows; None where they are not all there, which leaves the build unfinished.
        options: where, how much, and whether to start over.
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
        options.on_begin()
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        content = make_content(build)
        if content is None:
            return None
        return build.finish(content.frames, content.refused, content.report, options.max_quarantine, content.by_design)


def build_as_told(
    plan: BuildPlan,
    make_content: Callable[[Build], BuildContent],
    options: BuildOptions,
    check: Callable[[], None] = lambda: None,
) -> Artifact:
    """Build the artifact of a plan; one that is finished already is returned as it is.

    Args:
        plan: what is to be built.
        make_content: makes its rows.
        options: where, and how much.
        check: called before anything is written, where something is left to do.

    Raises:
        NotBuiltError: it is not finished, and nothing is to be built.
        StairDataError: as `build_artifact` says.
    """
    found = build_in_rounds(plan, make_content, options, check)
    assert found is not None, "its rows are all there"
    return found


def is_finished(plan: BuildPlan, options: BuildOptions) -> bool:
    """Tell whether building a plan would return what is there already."""
    found = None if options.fresh else find_finished(plan, options.root)
    return found is not None and options.version in (None, found.folder.name)
