"""`stairdata judge-agreement TREES OTHER`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli.console import emit, print_table
from stairdata.cli.options import JsonOption, RootOption, root_folder

if TYPE_CHECKING:
    from stairdata.report.judge_agreement import JudgeAgreement
    from stairdata.statistics.agreement import Agreement


def judge_agreement(
    trees: Annotated[str, typer.Argument(metavar="TREES", help="Trees: KIND, KIND@X.Y.Z, a folder, or org/name@TAG.")],
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="The same trees, rated again, or reviews of pairs of these trees.")
    ],
    min_margin: Annotated[
        float, typer.Option("--min-margin", min=0, help="Siblings further apart are counted by themselves, too.")
    ] = 0.5,
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Compare two judges of the same trees, or a judge with reviewers: ranks, kappa, and pairs that change sides."""
    from stairdata.hub.pull import open_reference
    from stairdata.report.judge_agreement import compare_judges

    folder = root_folder(root)
    found = compare_judges(open_reference(trees, folder), open_reference(other, folder), folder, min_margin)
    if json_:
        emit(json.dumps(found.as_json()))
    else:
        _print(found)


def _print(found: JudgeAgreement) -> None:
    print_table(["A", "B", "in both"], [[found.a, found.b, f"{found.shared:,}"]])
    header = ["ranks", "rated", "mean A", "mean B", "Spearman", "Kendall"]
    print_table(header, [[each.name, f"{each.rated:,}", *map(_number, each[2:])] for each in found.ranks])
    if found.yes_or_no is not None:
        _print_kappa(found.yes_or_no, "is safe" if found.b.startswith("trees") else "is the better one")
    header = ["sides", "pairs", "same", "turned", "tied"]
    print_table(header, [[name, *(f"{count:,}" for count in each)] for name, each in found.sides.items()])


def _print_kappa(found: Agreement, what: str) -> None:
    kappa = found.kappa
    interval = f"{_number(kappa.low)} to {_number(kappa.high)}" if kappa and kappa.low is not None else ""
    cells = [found.true_positives, found.false_negatives, found.false_positives, found.true_negatives]
    header = [what, "both", "A alone", "B alone", "neither", "kappa", "95% interval"]
    print_table(header, [["", *(f"{cell:,}" for cell in cells), _number(kappa.value if kappa else None), interval]])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
