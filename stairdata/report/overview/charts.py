"""Charts by matplotlib, as SVG for the page and as PNG beside it; the same figures give the same bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from stairdata.report.overview.content import Dot, ReportChart, Span, short

HINT = "pip install 'stairdata[report]'"
COLORS = ("#2a5f9e", "#b4520a", "#2e7d4f", "#8a3ffc", "#9f1853", "#595959")
MARKS = ("o", "s", "^", "D", "v", "P")
"""A mark of its own for each series: colours alone are not told apart by everybody."""
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in a font of the reader's machine
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names are no formulas
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "savefig.facecolor": "white",
}
_IDS = re.compile(r'( id="|href="#|url\(#)')
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)


def available() -> bool:
    """Return whether charts can be drawn here."""
    return find_spec("matplotlib") is not None


def draw(chart: ReportChart) -> tuple[str, bytes]:
    """Return a chart as an SVG element, which a page can hold, and as a PNG."""
    import matplotlib as mpl

    with warnings.catch_warnings(), mpl.rc_context({**_SETTINGS, "svg.hashsalt": chart.name}):
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks is drawn as a box
        figure = _figure(chart)
        vector, raster = io.BytesIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.savefig(raster, format="png", dpi=150, metadata={"Software": None})
    return _element(vector.getvalue().decode("utf-8"), chart.name), raster.getvalue()


def _element(svg: str, name: str) -> str:
    """Return the svg element alone, hidden from readers of its text; ids are made those of this chart."""
    svg = _IDS.sub(lambda match: f"{match[0]}{name}-", _HEAD.sub("", svg)).strip()
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _figure(chart: ReportChart) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    height = max(2.0, 1.0 + 0.24 * len(chart.dots)) if chart.is_ranked else 3.1 + 0.1 * len(chart.dots)
    figure = Figure(figsize=(4.6, height), layout="constrained")
    axes = figure.subplots()
    if chart.lines:
        _lines(axes, chart)
    elif chart.bars:
        _bars(axes, chart)
    elif chart.is_ranked:
        _ranked(axes, chart)
    else:
        _dots(axes, chart)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.x_range:
        axes.set_xlim(*chart.x_range)
    if chart.y_range:
        axes.set_ylim(*chart.y_range)
    return figure


def _lines(axes: Any, chart: ReportChart) -> None:
    from matplotlib.ticker import MaxNLocator

    for place, line in enumerate(chart.lines):
        color = COLORS[place % len(COLORS)]
        mark = MARKS[place % len(MARKS)] if len(line.x) <= 12 else None
        if line.smooth is not None:
            axes.plot(line.x, line.y, color=color, linewidth=0.8, alpha=0.3)
        if all(value.is_integer() for value in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.plot(line.x, line.smooth or line.y, color=color, linewidth=1.6, marker=mark, label=short(line.name))
    if len(chart.lines) > 1:
        _legend(axes, len(chart.lines))


def _bars(axes: Any, chart: ReportChart) -> None:
    for place, bars in enumerate(chart.bars):
        total = max(1, sum(bars.counts))
        shares = [count / total for count in bars.counts]
        color = COLORS[place % len(COLORS)]
        alone = len(chart.bars) == 1
        axes.stairs(shares, bars.edges, color=color, fill=alone, alpha=0.85, linewidth=1.6, label=short(bars.name))
    if len(chart.bars) > 1:
        _legend(axes, len(chart.bars))


def _dots(axes: Any, chart: ReportChart) -> None:
    stages = chart.dots[: chart.joined]
    if len(stages) > 1:
        axes.plot([dot.x.value for dot in stages], [dot.y.value for dot in stages], color="#9a9a9a", linewidth=1)
    for place, dot in enumerate(chart.dots):
        axes.errorbar(
            dot.x.value, dot.y.value, xerr=_ends(dot.x), yerr=_ends(dot.y), color=COLORS[place % len(COLORS)],
            marker=MARKS[place % len(MARKS)], markersize=max(5, 10 - place), fillstyle="none", markeredgewidth=1.6,
            linestyle="none", elinewidth=1.1, capsize=2.5, label=short(dot.name),
        )  # fmt: skip
    _legend(axes, len(chart.dots))


def _ranked(axes: Any, chart: ReportChart) -> None:
    if chart.mark is not None:
        axes.axvline(chart.mark, color="#9a9a9a", linewidth=1, linestyle="--")
    for place, dot in enumerate(chart.dots):
        axes.errorbar(dot.x.value, place, xerr=_ends(dot.x), color=COLORS[0], marker="o", elinewidth=1.2, capsize=2.5)
    axes.set_yticks(range(len(chart.dots)), [short(dot.name) for dot in chart.dots])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _ends(span: Span) -> list[list[float]] | None:
    """Return how far the ends of an interval are away, as matplotlib wants it."""
    if span.low is None or span.high is None:
        return None
    return [[max(0.0, span.value - span.low)], [max(0.0, span.high - span.value)]]


def _legend(axes: Any, names: int) -> None:
    axes.figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2 if names > 1 else 1)


def padded(dots: Sequence[Dot]) -> tuple[float, float]:
    """Return the range of the x axis that holds all dots from 0 on."""
    ends = [end for dot in dots for end in (dot.x.value, dot.x.high) if end is not None]
    return 0.0, max(ends, default=1.0) * 1.1 or 1.0
