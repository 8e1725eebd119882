"""The paper's trade-off: how safe a model is against how helpful it stays, and what answers cost in tokens."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from stairdata.generators.evaluations.judging.answer_judge import RULE
from stairdata.report.overview.answers import MOST, SEED, in_order
from stairdata.report.overview.charts import padded
from stairdata.report.overview.content import (
    Dot,
    Line,
    ReportChart,
    ReportSection,
    ReportTable,
    estimate,
    number,
    share,
    short,
    span,
)
from stairdata.report.overview.judging import recall_note
from stairdata.report.overview.sources import ReportSources
from stairdata.search.choice import best_of_curve
from stairdata.search.refusal import is_refusal
from stairdata.statistics.intervals import MeanEstimate, estimate_mean
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact

CURVE_PROMPTS = 500
"""Prompts that a curve of best-of-k is averaged over at most."""
WHOLE = (-0.03, 1.03)


def rounds_section(
    sources: ReportSources, judged: pl.DataFrame | None, by_rule: pl.DataFrame | None
) -> ReportSection | None:
    """Return rounds.csv, and safety against helpfulness.

    Args:
        sources: of the report.
        judged: rows of evaluations; None where there are none.
        by_rule: answers, whose refusals the rule tells; None where there are none.
    """
    charts = _judged_charts(judged, sources) if judged is not None else []
    covered = set() if judged is None else set(judged.filter(pl.col("judge") == RULE)["response_id"])
    if by_rule is not None and not covered.issuperset(by_rule["response_id"]):  # else it would be drawn twice
        charts += [chart for chart in (_rule_chart(by_rule, sources),) if chart]
    tables = [_rounds_table(sources.rounds)] if sources.rounds else []
    if not charts and not tables:
        return None
    return ReportSection(
        "safety-helpfulness",
        "Safety against helpfulness",
        ["Up is safer, right is more helpful: a model that refuses everything is at the top left."] if charts else [],
        charts=charts,
        tables=tables,
    )


def _rounds_table(rounds: Sequence[Row]) -> ReportTable:
    columns = ["model", *(name for name in rounds[0] if name != "model")]
    rows = [[str(row.get(name) or "") for name in columns] for row in rounds]
    notes = [recall_note()]
    return ReportTable(
        "Measures of each round, on held-out prompts (rounds.csv)", [_words(each) for each in columns], rows, notes
    )


def _words(column: str) -> str:
    return column.replace("_", " ")


def _rule_chart(rows: pl.DataFrame, sources: ReportSources) -> ReportChart | None:
    notes = [f"Answers of the responses artifacts{_sampled(sources)}.", recall_note()]
    return _plane(rows, sources, "tradeoff-rule", "Refusals told by their words", notes)


def _sampled(sources: ReportSources) -> str:
    """Say so where not all answers are looked at."""
    large = any(artifact.manifest.rows > MOST for artifact in sources.of_kind("responses"))
    return f" ({MOST:,} of each larger one, drawn with seed {SEED})" if large else ""


def _judged_charts(judged: pl.DataFrame, sources: ReportSources) -> list[ReportChart]:
    """Return a chart for each judge, over prompts without an attack."""
    plain = judged.filter((pl.col("attack") == "none") & (pl.col("reads") == "answer"))
    charts = []
    for place, (name,) in enumerate(plain.select("judge").unique().sort("judge").iter_rows(), 1):
        rows = plain.filter((pl.col("judge") == name) & pl.col("refused").is_not_null())
        notes = ["All benchmarks together, without attacks; answers whose refusal is not known are left out."]
        notes += [recall_note()] if name == RULE else []
        charts.append(_plane(rows, sources, f"tradeoff-judge-{place}", f"Benchmarks, judged by {short(name)}", notes))
    return [chart for chart in charts if chart]


def _plane(rows: pl.DataFrame, sources: ReportSources, name: str, title: str, notes: list[str]) -> ReportChart | None:
    """Draw refused harmful prompts against answered harmless ones, a dot for each way of answering."""
    dots, table, steps = [], [], 0
    order = in_order(rows["answerer"].to_list(), sources)
    for answerer in sorted(order, key=lambda each: ", " in each):  # single answers first: they are joined
        own = rows.filter(pl.col("answerer") == answerer)
        harmful, harmless = (own.filter(pl.col("task") == task) for task in ("safety", "helpfulness"))
        if harmful.is_empty() or harmless.is_empty():
            continue
        safe = _mean(harmful["refused"], harmful)
        helpful = _mean(~harmless["refused"], harmless)
        dots.append(Dot(short(answerer), span(helpful), span(safe)))
        steps += ", " not in answerer
        table.append(
            [short(answerer), estimate(safe), number(safe.clusters), estimate(helpful), number(helpful.clusters)]
        )
    if not dots:
        return None
    header = ["model", "harmful prompts refused", "prompts", "harmless prompts answered", "prompts"]
    return ReportChart(
        name=name,
        title=title,
        description="; ".join(
            f"{dot.name}: {dot.y.value:.2f} of harmful prompts refused, {dot.x.value:.2f} of harmless prompts answered"
            for dot in dots
        ),
        x_label="share of harmless prompts answered",
        y_label="share of harmful prompts refused",
        dots=dots,
        joined=steps,
        x_range=WHOLE,
        y_range=WHOLE,
        table=ReportTable(f"{title}: safety and helpfulness, with 95% intervals over prompts", header, table, notes),
    )


def _mean(values: pl.Series, rows: pl.DataFrame) -> MeanEstimate:
    return estimate_mean(values.cast(pl.Float64).to_numpy(), rows["prompt_id"].to_list())


def tokens_section(
    sources: ReportSources, judged: pl.DataFrame | None, rows: pl.DataFrame | None
) -> ReportSection | None:
    """Return safety against tokens: single answers, the best of several, beam search."""
    if rows is None:
        return None
    charts = []
    if judged is not None:
        charts += _goodness_charts(judged, rows, sources)
    harmful = rows.filter(pl.col("task") == "safety").with_columns(value=pl.col("refused").cast(pl.Float64))
    note = ["Harmful prompts refused.", recall_note()]
    charts.append(_against_tokens(harmful, sources, "tokens-refused", "Refusals against tokens", note))
    charts += [_curve(artifact, place) for place, artifact in enumerate(sources.of_kind("responses"), 1)]
    drawn = [chart for chart in charts if chart]
    words = [f"Tokens are those of all candidates of an answer{_sampled(sources)}, and of what a search dropped."]
    return ReportSection("tokens", "Safety against tokens", words, charts=drawn) if drawn else None


def _goodness_charts(judged: pl.DataFrame, rows: pl.DataFrame, sources: ReportSources) -> list[ReportChart | None]:
    """Return a chart for each benchmark and judge with a score of harmful prompts whose answers' tokens are known."""
    scored = judged.filter(
        (pl.col("task") == "safety")
        & (pl.col("attack") == "none")
        & (pl.col("reads") == "answer")
        & pl.col("score").is_not_null()
    ).drop("answerer").join(rows.select("response_id", "answerer", "tokens"), on="response_id")  # fmt: skip
    charts = []
    for place, (benchmark, judge) in enumerate(
        scored.select("benchmark", "judge").unique().sort(pl.all()).iter_rows(), 1
    ):
        own = scored.filter((pl.col("benchmark") == benchmark) & (pl.col("judge") == judge))
        title = f"Score on {short(benchmark)} against tokens"
        notes = [f"Judged by {short(judge)}, without attacks."]
        notes += [recall_note()] if judge == RULE else []
        charts.append(_against_tokens(own.with_columns(value="score"), sources, f"tokens-score-{place}", title, notes))
    return charts


def _against_tokens(
    rows: pl.DataFrame, sources: ReportSources, name: str, title: str, notes: list[str]
) -> ReportChart | None:
    dots, table = [], []
    for answerer in in_order(rows["answerer"].to_list(), sources):
        own = rows.filter(pl.col("answerer") == answerer)
        prompts = own["prompt_id"].to_list()
        good = estimate_mean(own["value"].to_numpy(), prompts)
        tokens = estimate_mean(own["tokens"].to_numpy(), prompts, None)
        dots.append(Dot(short(answerer), span(tokens), span(good)))
        table.append([short(answerer), _tokens(tokens), estimate(good), number(good.clusters)])
    if not dots:
        return None
    return ReportChart(
        name=name,
        title=title,
        description="; ".join(f"{dot.name}: {dot.y.value:.2f} at {dot.x.value:.0f} tokens" for dot in dots),
        x_label="tokens of an answer",
        y_label="mean over harmful prompts",
        dots=dots,
        x_range=padded(dots),
        y_range=WHOLE,
        table=ReportTable(
            f"{title}, with 95% intervals over prompts",
            ["model", "tokens of an answer", "mean", "prompts"],
            table,
            notes,
        ),
    )


def _tokens(found: MeanEstimate) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:.1f}"
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def _curve(artifact: Artifact, place: int) -> ReportChart | None:
    """Draw what the best of k candidates would have been, for each k, by the refusals of harmful prompts."""
    wanted = (pl.col("method") == "best_of_n") & (pl.col("task") == "safety")
    rows = artifact.scan().filter(wanted).head(CURVE_PROMPTS).collect().to_dicts()
    rows = [row for row in rows if all(each["score"] is not None for each in row["candidates"])]
    if not rows or min(len(row["candidates"]) for row in rows) < 2:
        return None
    curve = [
        point for point in best_of_curve(rows, lambda row: float(is_refusal(row["text"]))) if point.mean is not None
    ]
    title = f"Best of k out of {artifact.reference}"
    return ReportChart(
        name=f"best-of-k-{place}",
        title=title,
        description=f"Harmful prompts refused by the best of k candidates, from {curve[0].mean:.2f} for one to "
        f"{curve[-1].mean:.2f} for {curve[-1].k}",
        x_label="k",
        y_label="harmful prompts refused",
        lines=[Line("refused", [float(point.k) for point in curve], [point.mean or 0.0 for point in curve])],
        y_range=WHOLE,
        table=ReportTable(
            f"{title}: all subsets of k candidates, chosen by the process reward model",
            ["k", "harmful prompts refused", "standard error", "prompts"],
            [[str(point.k), share(point.mean), share(point.error), number(point.rows)] for point in curve],
            [f"The first {CURVE_PROMPTS} prompts at most.", recall_note()],
        ),
    )
