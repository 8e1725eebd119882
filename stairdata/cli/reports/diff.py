"""`stairdata diff A B`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli.console import emit, print_table
from stairdata.cli.options import JsonOption, RootOption, root_folder

if TYPE_CHECKING:
    from stairdata.report.differences import Differences


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="KIND, KIND@X.Y.Z, a folder, or org/name@TAG.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another artifact of the same kind.")],
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Compare two artifacts: rows by key, distributions, and recipes."""
    from stairdata.hub.pull import open_reference
    from stairdata.report.differences import compare

    folder = root_folder(root)
    found = compare(open_reference(a, folder), open_reference(b, folder))
    if json_:
        emit(json.dumps(found.as_json(), default=str))
    else:
        _print(found)


def _print(found: Differences) -> None:
    names = {"a": f"A: {found.a}", "b": f"B: {found.b}"}
    print_table(["rows", ""], [[names.get(name, name), f"{count:,}"] for name, count in found.rows.items()])
    if found.changed_columns:
        print_table(["changed column", "rows"], [[name, f"{count:,}"] for name, count in found.changed_columns.items()])
    if found.moved:
        print_table(["moved", ""], [[name, _number(value)] for name, value in found.moved.items()])
    if found.shifts:
        header = ["distribution", "count A", "count B", "mean A", "mean B", "median A", "median B", "distance"]
        print_table(header, [[shift.name, *map(_number, shift[1:])] for shift in found.shifts])
    for column, counts in found.classes.items():
        print_table([column, "A", "B"], [[name, f"{of_a:,}", f"{of_b:,}"] for name, (of_a, of_b) in counts.items()])
    if found.recipe:
        print_table(
            ["recipe", "A", "B"], [[name, _shown(of_a), _shown(of_b)] for name, (of_a, of_b) in found.recipe.items()]
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
