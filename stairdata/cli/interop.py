"""`stairdata import` and `stairdata export`: files of the published code, in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import JsonOption, RootOption, VersionOption, root_folder
from stairdata.cli.results import print_artifact

FORMATS = ("thu-ml",)


def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of the published code, JSON.")],
    from_: Annotated[str, typer.Option("--from", help="Format of the files: thu-ml.")],
    kind: Annotated[str, typer.Option("--kind", help="What the files contain: trees or prompts.")],
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="REF", help="Prompts of the trees, for the tasks that the files lack."),
    ] = None,
    root: RootOption = None,
    version: VersionOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    max_quarantine: Annotated[
        float, typer.Option("--max-quarantine", min=0, max=1, help="Fail if a larger share is refused.")
    ] = 0.05,
    json_: JsonOption = False,
) -> None:
    """Import files into an artifact; print what could not be taken over."""
    from stairdata.interop.importing import import_thu_ml
    from stairdata.runs.options import BuildOptions

    _check_format(from_)
    with show_progress() as progress:
        options = BuildOptions(
            root_folder(root), version, fresh=fresh, max_quarantine=max_quarantine, progress=progress
        )
        artifact = import_thu_ml(kind.replace("-", "_"), files, options, prompts)
    lost = artifact.manifest.details.get("not_taken_over", {})
    for what, count in lost.items():
        say(f"not taken over: {what}: {count}")
    if not lost and not artifact.manifest.quarantine:
        say("everything was taken over")
    print_artifact(artifact, json_=json_)


def export(
    reference: Annotated[str, typer.Argument(metavar="REF", help="KIND, KIND@X.Y.Z, a folder, or org/name@TAG.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    to: Annotated[str, typer.Option("--to", help="Format of the file: thu-ml.")],
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Export an artifact in the published code's format: trees and prompts as JSON, pairs as JSONL."""
    from stairdata.hub.pull import open_reference
    from stairdata.interop.exporting import export_thu_ml

    _check_format(to)
    artifact = open_reference(reference, root_folder(root))
    with show_progress() as progress:
        count = export_thu_ml(artifact, file, progress)
    say(f"{artifact.reference}: {count} written")
    emit(json.dumps({"file": str(file), "artifact": artifact.reference, "rows": count}) if json_ else str(file))


def _check_format(name: str) -> None:
    from stairdata_schemas.errors import UsageError, quote

    if name not in FORMATS:
        raise UsageError(f"unknown format {quote(name)}; use {', '.join(FORMATS)}")
