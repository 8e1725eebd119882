"""`stairdata check-judge FILE...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli.console import emit, print_table, say
from stairdata.cli.options import JsonOption

if TYPE_CHECKING:
    from stairdata.generators.evaluations.judge_check import JudgeCheck
    from stairdata.statistics.agreement import Agreement, Kappa
    from stairdata.statistics.intervals import MeanEstimate


def check_judge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Answers with labels that people gave.")],
    judge: Annotated[
        str, typer.Option("--judge", help="rule: the words of an answer. sorry: the published code's rule.")
    ] = "rule",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            metavar="NAME=COLUMN",
            help="What the file calls prompt, response, label or model; can be repeated.",
        ),
    ] = None,
    positive: Annotated[
        list[str] | None,
        typer.Option(
            "--positive", metavar="LABEL", help="A label that says refusal; can be repeated. Default: XSTest's."
        ),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="List this many disagreements.")] = 0,
    json_: JsonOption = False,
) -> None:
    """Compare a judge with people's labels: accuracy, precision, recall and kappa, by model."""
    from stairdata.generators.evaluations.judge_check import JUDGES
    from stairdata.generators.evaluations.judge_check import check_judge as check
    from stairdata.generators.evaluations.labels import read_labelled
    from stairdata_schemas.errors import UsageError, quote, suggest

    if judge not in JUDGES:
        raise UsageError(f"--judge {quote(judge)} is unknown; {suggest(judge, JUDGES)}")
    answers = read_labelled(files, _pairs(columns or []), positive or [])
    found = check(answers, JUDGES[judge])
    if json_:
        emit(json.dumps({"judge": judge, "files": [str(file) for file in files], **found.as_json(show)}))
        return
    _print(found, show)
    say(f"{judge}: intervals hold the true figure in 95% of such samples of prompts; a refusal may be partial")


def _pairs(columns: list[str]) -> dict[str, str]:
    from stairdata_schemas.errors import UsageError, quote

    if wrong := [each for each in columns if not all(each.partition("="))]:
        raise UsageError(f"--columns takes NAME=COLUMN, such as response=text, not {quote(wrong[0])}")
    return {name: column for name, _, column in (each.partition("=") for each in columns)}


def _print(found: JudgeCheck, show: int) -> None:
    from stairdata_schemas.errors import quote

    header = ["model", "answers", "refusals", "accuracy", "precision", "recall", "kappa"]
    named = dict(found.models) if len(found.models) > 1 else {}
    rows = [[name, *_cells(each)] for name, each in {**named, "all": found.overall}.items()]
    print_table(header, rows)
    if found.unread:
        say(f"{found.unread} answers without a readable verdict are in no figure")
    if show and found.disagreements:
        emit("")
        shown = [
            [answer.model, quote(answer.prompt), quote(answer.response.strip()), quote(answer.label), _verdict(verdict)]
            for answer, verdict in found.disagreements[:show]
        ]
        print_table(["model", "prompt", "answer", "label", "judge"], shown)
    say(f"{len(found.disagreements)} disagreements" + ("" if show else "; --show 20 lists the first 20"))


def _cells(agreement: Agreement | None) -> list[str]:
    if agreement is None:
        return ["0", *[""] * 5]
    positive = agreement.true_positives + agreement.false_negatives
    figures = [agreement.accuracy, agreement.precision, agreement.recall]
    return [str(agreement.accuracy.rows), str(positive), *map(_mean, figures), _kappa(agreement.kappa)]


def _mean(figure: MeanEstimate | None) -> str:
    return "" if figure is None else _shown(figure.mean, figure.low, figure.high)


def _kappa(figure: Kappa | None) -> str:
    return "" if figure is None else _shown(figure.value, figure.low, figure.high)


def _shown(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _verdict(verdict: bool) -> str:
    return "refusal" if verdict else "no refusal"
