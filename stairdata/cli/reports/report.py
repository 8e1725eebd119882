"""`stairdata report`: a run, or some artifacts with their ancestors, on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stairdata.cli.console import emit, say
from stairdata.cli.options import JsonOption, RootOption, root_folder


def report(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REF]...", help="Report these and what they were made from; default: everything."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Folder of a run or quickstart: its artifacts, models and rounds.csv."),
    ] = None,
    root: RootOption = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Page to write, its charts beside it; default: report/index.html of the folder.",
        ),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", metavar="FOLDER", help="Model folder whose training is reported; can be repeated."),
    ] = None,
    judge_check: Annotated[
        list[Path] | None,
        typer.Option(
            "--judge-check",
            metavar="FILE",
            help="What `check-judge --json` printed; default: check-judge.json of --folder.",
        ),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Rows to look at, drawn at random.")] = 300,
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page.")] = None,
    json_: JsonOption = False,
) -> None:
    """Write one HTML page on artifacts, trainings and evaluations, with its charts as PNGs."""
    from stairdata.hub.pull import open_reference
    from stairdata.report.overview.sources import Places, find_sources
    from stairdata.report.overview.writing import PLACE, write_report
    from stairdata_schemas.errors import UsageError

    if folder is not None and not folder.is_dir():
        raise UsageError(f"--folder {folder} is no folder; name one that `stairdata run` or `quickstart` made")
    own_root = folder / "artifacts" if folder is not None and root is None else root_folder(root)
    named = [open_reference(each, own_root) for each in references or []]
    places = Places(own_root, folder, model or [], judge_check or [])
    found = find_sources(places, named)
    page = html or (folder or Path()) / PLACE
    heading = title or _heading([each.reference for each in named], own_root, folder)
    written = write_report(found, page, heading, most_examples=examples, tell=say)
    say(
        f"wrote a report of {written.artifacts} artifacts and {len(found.trainings)} trainings, with "
        f"{len(written.images)} charts; it shows text after a click"
    )
    emit(json.dumps(written.as_json()) if json_ else str(written.page))


def _heading(references: list[str], root: Path, folder: Path | None) -> str:
    if references:
        return f"Report on {', '.join(references)}"
    return f"Report of the run {folder.resolve().name}" if folder else f"Report on {root.resolve().name}"
