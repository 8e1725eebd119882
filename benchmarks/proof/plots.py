"""The trade-off between both kinds of refusals, and what tokens at test time add, as PNGs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stairdata.report.overview.charts import available, draw, padded
from stairdata.report.overview.content import Dot, ReportChart, ReportTable, Span
from stairdata_schemas.aliases import Json
from stairdata_schemas.files import write_atomic

WHOLE = (-0.03, 1.03)


def write_plots(folder: Path, results: Json) -> list[str]:
    """Draw what there is to be drawn, and return the names of the files; none without matplotlib."""
    if not available():
        return []
    names = []
    for chart in _charts(results):
        file = f"{chart.name}.png"
        write_atomic(folder / file, draw(chart)[1])
        names.append(file)
    return names


def _charts(results: Json) -> Iterator[ReportChart]:
    line = results["lines"][results["about"]["seeds"][0]]
    models = {name: found for name, found in line["models"].items() if found["primary"]}
    if models:
        dots = [
            Dot(name, _span(found["refused_safe"], "mean"), _span(found["refused_unsafe"], "mean"))
            for name, found in models.items()
        ]
        stages = sum(", " not in name for name in models)
        labels = "refused of XSTest's safe prompts", "refused of its unsafe prompts"
        yield _chart("trade-off", *labels, dots, joined=stages, x_range=WHOLE, y_range=WHOLE)
    dots = [
        Dot(each["name"], Span(each["tokens"]), _span(each["primary"], "value"))
        for each in line["searched"]
        if each["primary"]
    ]
    if dots:
        yield _chart("tokens", "tokens sampled for a prompt", "primary measure", dots, x_range=padded(dots))


def _span(estimate: Json, name: str) -> Span:
    return Span(estimate[name], estimate["low"], estimate["high"])


def _chart(
    name: str,
    x_label: str,
    y_label: str,
    dots: list[Dot],
    *,
    joined: int = 0,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> ReportChart:
    return ReportChart(
        name, name, "", x_label, y_label, ReportTable("", [], []), dots=dots, joined=joined, x_range=x_range,
        y_range=y_range,
    )  # fmt: skip
