"""`stairdata join`: one artifact out of the shards of a build."""

from __future__ import annotations

from typing import Annotated

import typer

from stairdata.cli.build.shared import MaxQuarantineOption
from stairdata.cli.options import JsonOption, RootOption, VersionOption, root_folder
from stairdata.cli.results import print_artifact


def join(
    references: Annotated[
        list[str], typer.Argument(metavar="REF...", help="All shards of one build, in any order.", show_default=False)
    ],
    root: RootOption = None,
    version: VersionOption = None,
    max_quarantine: MaxQuarantineOption = 0.05,
    json_: JsonOption = False,
) -> None:
    """Join the shards of a build into the artifact that the build in one piece makes."""
    from stairdata.hub.pull import open_reference
    from stairdata.runs.shards.join import join_shards

    folder = root_folder(root)
    shards = [open_reference(reference, folder) for reference in references]
    print_artifact(join_shards(shards, folder, version, max_quarantine), json_=json_)
