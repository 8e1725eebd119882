"""What a page consists of: sections with tables and charts, as plain values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from stairdata.statistics.intervals import MeanEstimate
from stairdata_schemas.errors import visible

LONGEST_NAME = 60
_FIGURE = re.compile(r"-?[\d,]+(?:\.\d+)?(?:e[-+]\d+)?(?: \([^()]*\)|, -?[\d.]+)?")
"""A number, perhaps with its interval, or two of them."""


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table; its first column names the rows."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    """Below the table: what a reader has to know of its figures."""

    @property
    def are_figures(self) -> list[bool]:
        """Whether all cells of a column are figures, for each column."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        return [all(not cell or _FIGURE.fullmatch(cell) for cell in column) for column in columns]

    def without_empty_columns(self) -> ReportTable:
        """Return the table without the columns in which no row says anything."""
        filled = [place for place in range(len(self.header)) if any(row[place] for row in self.rows)]
        return replace(
            self,
            header=[self.header[place] for place in filled],
            rows=[[row[place] for place in filled] for row in self.rows],
        )


@dataclass(frozen=True, slots=True)
class Line:
    """Values along an axis."""

    name: str
    x: list[float]
    y: list[float]
    smooth: list[float] | None = None
    """A moving mean of y."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Counts between edges."""

    name: str
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True)
class Span:
    """A figure with its 95% interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a plane."""

    name: str
    x: Span
    y: Span


@dataclass(frozen=True, slots=True)
class ReportChart:
    """A chart of lines, bars or dots, with the same figures as a table."""

    name: str
    """Of its PNG, without the ending."""
    title: str
    description: str
    """What a reader who can't see it has to know."""
    x_label: str
    y_label: str
    table: ReportTable
    lines: list[Line] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    joined: int = 0
    """So many of the first dots are stages of one thing, in order."""
    is_ranked: bool = False
    """The dots stand below one another, each with its name; y counts for nothing."""
    mark: float | None = None
    """A value of x to compare with, such as chance."""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A part of the page with a heading."""

    anchor: str
    title: str
    words: list[str] = field(default_factory=list)
    """Paragraphs before the figures."""
    charts: list[ReportChart] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)


def share(value: float | None) -> str:
    """Show a figure by three digits; an empty text for None."""
    return "" if value is None else f"{value:.3f}"


def number(value: float | None) -> str:
    """Show a count with thousands apart, or a figure by four digits; an empty text for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def interval(value: float, low: float | None, high: float | None) -> str:
    """Show a figure with its interval."""
    return share(value) if low is None or high is None else f"{share(value)} ({share(low)} to {share(high)})"


def estimate(found: MeanEstimate | None) -> str:
    """Show a mean with its interval; an empty text for None."""
    return "" if found is None else interval(found.mean, found.low, found.high)


def span(found: MeanEstimate) -> Span:
    """Return a mean as a figure of a chart."""
    return Span(found.mean, found.low, found.high)


def short(name: str) -> str:
    """Return a name on one line, cut where it is too long for a legend or a cell."""
    line = " ".join(visible(name).split())
    return line if len(line) <= LONGEST_NAME else line[:LONGEST_NAME] + "…"


def counted(counts: dict[str, int]) -> str:
    """Show counts by name, such as `duplicate 3, blank 1`."""
    return ", ".join(f"{short(name).replace('_', ' ')} {count:,}" for name, count in counts.items() if count)


def sentence(text: str) -> str:
    """Return a note as a sentence."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def joined(texts: Sequence[str]) -> str:
    """Join texts that are not empty, each once."""
    return "; ".join(dict.fromkeys(text for text in texts if text))
