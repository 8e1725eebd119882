"""Distribution plots for the card, as PNG: figures and names from a fixed list alone, never text of rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.kinds import GRANULARITIES, METHODS, SAFE_SIDES, TASKS, VERDICTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 30
SAMPLE_ROWS = 200_000
HINT = "pip install 'stairdata[publish]'"
_NODE = pl.col("nodes").list.explode(keep_nulls=False, empty_as_null=False).struct


class Picture(NamedTuple):
    """A rendered plot."""

    name: str
    caption: str
    png: bytes


class Distribution(NamedTuple):
    """What to plot: numbers as a histogram, names as bars."""

    name: str
    caption: str
    values: pl.Expr
    names: tuple[str, ...] = ()
    """The only names shown; none for numbers."""
    unit: str = "rows"
    """What is counted."""


def available() -> bool:
    """Return whether plots can be drawn here."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw(artifact: Artifact) -> list[Picture]:
    """Draw the distributions of an artifact; those without a value are left out."""
    return list(_drawn(artifact))


def _drawn(artifact: Artifact) -> Iterator[Picture]:
    for wanted in DISTRIBUTIONS.get(artifact.kind, []):
        values = _collect(artifact, wanted.values)
        if len(values):
            try:
                figure = _bars(values, wanted) if wanted.names else _histogram(values, wanted)
            except ValueError:
                continue  # numbers of a range that has no histogram; the rows are published without it
            yield Picture(f"{wanted.name}.png", wanted.caption, figure)


def _collect(artifact: Artifact, values: pl.Expr) -> pl.Series:
    rows = artifact.scan().head(SAMPLE_ROWS).select(values.alias("value")).drop_nulls()
    return rows.collect(engine="streaming")["value"]


def _histogram(values: pl.Series, wanted: Distribution) -> bytes:
    finite = values.cast(pl.Float64)
    numbers: NDArray[Any] = finite.filter(finite.is_finite()).to_numpy()
    distinct = int(values.n_unique())
    low, high = float(numbers.min()), float(numbers.max())
    if distinct <= BINS and high - low <= BINS and values.dtype.is_integer():
        edges: Any = [low - 0.5 + step for step in range(int(high - low) + 2)]
    else:
        edges = BINS
    style = {"color": "#3b6ea8", "edgecolor": "white"}
    return _figure(wanted, lambda axes: axes.hist(numbers, bins=edges, **style), integer=values.dtype.is_integer())


def _bars(values: pl.Series, wanted: Distribution) -> bytes:
    counts = {name: int((values == name).sum()) for name in wanted.names}
    return _figure(wanted, lambda axes: axes.bar(list(counts), list(counts.values()), color="#3b6ea8", width=0.6))


def _figure(wanted: Distribution, plot: Callable[[Any], object], *, integer: bool = False) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3), dpi=100, layout="tight")
    axes = figure.subplots()
    plot(axes)
    axes.set_title(wanted.caption, fontsize=10)
    axes.set_ylabel(wanted.unit)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if integer:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _names(column: str, names: tuple[str, ...]) -> Distribution:
    return Distribution(column, f"Rows by {column.replace('_', ' ')}", pl.col(column), names)


def _numbers(column: str, caption: str) -> Distribution:
    return Distribution(column, caption, pl.col(column))


def _length(column: str) -> Distribution:
    return Distribution(f"{column}_length", f"Length of {column}, in characters", pl.col(column).str.len_chars())


_TASK = _names("task", TASKS)
_PAIRS = [
    _TASK,
    _numbers("margin", "Margin between the two values"),
    _numbers("chosen_value", "Value of the chosen node"),
    _numbers("depth", "Depth of the chosen node"),
    _names("granularity", GRANULARITIES),
]
DISTRIBUTIONS: dict[str, list[Distribution]] = {
    "prompts": [_TASK, _length("prompt")],
    "structured_cot": [
        _TASK,
        Distribution("steps", "Reasoning steps of a completion", pl.col("steps").list.len()),
        _length("completion"),
    ],
    "trees": [
        _TASK,
        Distribution("nodes", "Nodes of a tree", pl.col("nodes").list.len()),
        Distribution("node_depth", "Depth of nodes", _NODE.field("depth"), unit="nodes"),
        Distribution("node_reward", "Reward of terminal nodes", _NODE.field("reward"), unit="nodes"),
    ],
    "preference_pairs": _PAIRS,
    "prm_pairs": _PAIRS,
    "responses": [_TASK, _names("method", METHODS), _numbers("score", "Score of the chosen answer"), _length("text")],
    "evaluations": [_TASK, _numbers("helpfulness", "Helpfulness"), _numbers("safety", "Safety")],
    "reviews": [_names("verdict", VERDICTS), _names("safe", SAFE_SIDES)],
}
