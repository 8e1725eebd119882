"""Groups of held-out pairs, and the measures of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from stairdata_training.held_out.bootstrap import Interval, interval_of_mean
from stairdata_training.tokens import RowMapping


def _end(row: RowMapping) -> str:
    """Say whether the compared steps end their answers; the two sides of a PRM pair may differ in that."""
    sides = {bool(row["chosen_is_terminal"]), bool(row["rejected_is_terminal"])}
    return "mixed" if len(sides) == 2 else "terminal" if sides == {True} else "partial"


_GROUPINGS: dict[str, Callable[[RowMapping], str | None]] = {
    "task": lambda row: row.get("task"),
    "end": _end,
    "depth": lambda row: None if row.get("depth") is None else str(row["depth"]),
}


def intervals_by(
    grouping: Literal["task", "end", "depth"], rows: Sequence[RowMapping], values: Sequence[float]
) -> dict[str, Interval]:
    """Return the mean of each group of rows, groups in the order of their names (depths: of their numbers)."""
    members: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        name = _GROUPINGS[grouping](row)
        if name is not None:
            members.setdefault(name, []).append(index)
    order = sorted(members, key=int) if grouping == "depth" else sorted(members)
    return {
        name: interval_of_mean(
            [values[index] for index in members[name]], [rows[index]["prompt_id"] for index in members[name]]
        )
        for name in order
    }


def wrong_way(accuracy_by_task: dict[str, Interval]) -> list[str]:
    """Return the tasks of which a model ranks pairs the wrong way round: the whole interval lies below one half.

    Such a model follows what is right on the other task alone, such as that the side which declines is the better one.
    """
    return [task for task, found in accuracy_by_task.items() if found.high is not None and found.high < 0.5]


def wins(differences: Sequence[float]) -> list[float]:
    """Return 1 for each difference above zero, 0.5 for a tie, else 0."""
    return [0.5 if difference == 0 else float(difference > 0) for difference in differences]
