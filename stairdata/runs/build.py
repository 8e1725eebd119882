"""From a plan and what makes its rows to a finished artifact, as the options of a command say."""

from __future__ import annotations

from collections.abc import Callable

from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, build_artifact


def build_as_told(plan: BuildPlan, make_content: Callable[[Build], BuildContent], options: BuildOptions) -> Artifact:
    """Build the artifact of a plan; one that is finished already is returned as it is.

    Raises:
        StairDataError: as `build_artifact` says.
    """
    return build_artifact(
        plan,
        make_content,
        options.root,
        options.version,
        fresh=options.fresh,
        max_quarantine=options.max_quarantine,
    )
