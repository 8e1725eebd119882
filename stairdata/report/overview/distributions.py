"""How values of trees and margins of pairs are distributed."""

from __future__ import annotations

import numpy as np

from stairdata.report.measures import Numbers, figure
from stairdata.report.overview.content import Bars, ReportChart, ReportSection, ReportTable, number, share
from stairdata.report.overview.flow import stage_names
from stairdata.report.overview.sources import ReportSources
from stairdata_schemas.artifacts import Artifact

BINS = 24
MOST = 6
"""Artifacts in one chart: the newest."""
_CHARTS = (
    ("values", "trees", "value of a node", "Values of tree nodes", "value of a node that was visited"),
    ("rewards", "trees", "reward of an answer", "Rewards of finished answers", "reward R(H, S) of a terminal node"),
    ("margins", "preference_pairs", "margin", "Margins of preference pairs", "value of the chosen minus the rejected"),
)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def distributions_section(sources: ReportSources) -> ReportSection | None:
    """Return a chart of each figure, its artifacts over one another."""
    names = stage_names(sources)
    charts = []
    for file, kind, measured, title, axis in _CHARTS:
        found = _values(sources.of_kind(kind), measured, names)
        if found:
            charts.append(_chart(file, title, axis, found))
    return ReportSection("distributions", "Values of trees and pairs", charts=charts) if charts else None


def _values(artifacts: list[Artifact], measured: str, names: dict[str, str]) -> dict[str, Numbers]:
    found = {}
    for artifact in artifacts[-MOST:]:
        values = figure(artifact, measured)
        if len(values):
            name = names.get(artifact.reference)
            found[f"{artifact.reference}, {name}" if name else artifact.reference] = values
    return found


def _chart(file: str, title: str, axis: str, found: dict[str, Numbers]) -> ReportChart:
    every = np.concatenate(list(found.values()))
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    rows = [
        [
            name,
            number(len(values)),
            share(float(values.mean())),
            *(share(float(np.quantile(values, q))) for q in _QUANTILES),
        ]
        for name, values in found.items()
    ]
    header = ["artifact", "values", "mean", *(f"{q:.0%}" if q != 0.5 else "median" for q in _QUANTILES)]
    medians = ", ".join(f"{float(np.median(values)):.2f}" for values in found.values())
    return ReportChart(
        name=file,
        title=title,
        description=f"Histogram of {axis}, from {low:.2f} to {high:.2f}; medians: {medians}",
        x_label=axis,
        y_label="share",
        bars=[Bars(name, edges.tolist(), np.histogram(values, edges)[0].tolist()) for name, values in found.items()],
        table=ReportTable(f"{title}: mean and quantiles", header, rows),
    )
