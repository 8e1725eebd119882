"""What trainings say of themselves: losses, and accuracy on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

from stairdata.report.overview.content import (
    Dot,
    Line,
    ReportChart,
    ReportSection,
    ReportTable,
    Span,
    interval,
    number,
    share,
    short,
)
from stairdata.report.overview.sources import ReportSources, is_number
from stairdata_schemas.aliases import Json

Measured = tuple[str, float, float | None, float | None, int | None, int | None]
"""Name, value, ends of the interval, prompts and pairs of a measure."""
_WORDS = {"accuracy": "all pairs", "length_rule: accuracy": "all, by the rule of lengths alone"}
POINTS = 400
"""Steps of a curve that are drawn at most; the table has ten."""
ROWS = 10
SMOOTH_FROM = 40
METHODS = {"sft": "SFT", "dpo": "step-DPO", "prm": "process reward model"}
ACCURACY = {"dpo": "rewards/accuracies", "prm": "accuracy"}
"""What TRL calls the share of pairs ranked right."""


def losses_section(sources: ReportSources) -> ReportSection | None:
    """Return the loss of each training by step."""
    drawn, rows = [], []
    for name, record in by_method(sources):
        steps, values = series(record, "loss")
        rows.append(_facts(name, record))
        if values:
            drawn.append(_loss_chart(name, record, steps, values))
    if not rows:
        return None
    header = ["model", "method", "rows", "tokens", "steps", "first loss", "last loss", "accuracy in training"]
    table = ReportTable(
        "Trainings", header, rows, ["Accuracy in training: share of pairs ranked right in the last tenth of the steps."]
    )
    return ReportSection("trainings", "Trainings", charts=drawn, tables=[table])


def by_method(sources: ReportSources) -> list[tuple[str, Json]]:
    """Return the trainings in the order of STAIR: SFT, rounds of DPO, the process reward model."""
    order = [*METHODS, ""]

    def place(found: tuple[str, Json]) -> tuple[int, int, str]:
        name, method = found[0], method_of(found[1])
        return order.index(method) if method in order else len(order), len(name), name

    return sorted(sources.trainings.items(), key=place)


def method_of(record: Json) -> str:
    """Return sft, dpo or prm; an empty text where it is not known."""
    for part in ("identity", "summary"):
        found = record.get(part)
        said = found.get("trainer") or found.get("method") if isinstance(found, dict) else None
        if isinstance(said, str):
            return said.partition("/")[0]
    return ""


def series(record: Json, key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of what a training logged; a loss may be in the summary alone."""
    metrics = record.get("metrics")
    logged = [each for each in metrics if isinstance(each, dict)] if isinstance(metrics, list) else []
    points: list[Any] = [(each.get("step"), each.get(key)) for each in logged]
    if key == "loss" and all(value is None for _, value in points):
        summary = record.get("summary")
        losses = summary.get("losses") if isinstance(summary, dict) else None
        points = [point for point in losses if isinstance(point, list) and len(point) == 2] if losses else []
    sound = [(float(step), float(value)) for step, value in points if is_number(step) and is_number(value)]
    return [step for step, _ in sound], [value for _, value in sound]


def _facts(name: str, record: Json) -> list[str]:
    summary = record.get("summary")
    said = summary if isinstance(summary, dict) else {}
    known = {key: value for key, value in said.items() if is_number(value)}
    method = method_of(record)
    _, ranked = series(record, ACCURACY.get(method, ""))
    last = ranked[-max(1, math.ceil(len(ranked) / 10)) :]
    return [
        short(name),
        METHODS.get(method, method),
        *(number(known.get(key)) for key in ("rows", "tokens", "steps")),
        *(share(known.get(key)) for key in ("first_loss", "last_loss")),
        share(sum(last) / len(last)) if last else "",
    ]


def _loss_chart(name: str, record: Json, steps: list[float], values: list[float]) -> ReportChart:
    smooth = _moving_mean(values)
    kept = _spread(len(values), POINTS)
    listed = _spread(len(values), ROWS)
    label = short(name)
    rows = [[number(int(steps[place])), share(values[place])] for place in listed]
    method = METHODS.get(method_of(record), "")
    end = smooth[-1] if smooth else values[-1]
    return ReportChart(
        name=f"loss-{_file_name(name)}",
        title=f"Loss of {label}" + (f" ({method})" if method else ""),
        description=f"Loss by optimizer step, from {values[0]:.3f} to {end:.3f} over {int(steps[-1])} steps"
        + ("; the thick line is the mean of the last twentieth of the steps" if smooth else ""),
        x_label="step",
        y_label="loss",
        lines=[
            Line(
                label,
                [steps[each] for each in kept],
                [values[each] for each in kept],
                [smooth[each] for each in kept] if smooth else None,
            )
        ],
        table=ReportTable(f"Loss of {label}", ["step", "loss"], rows),
    )


def _file_name(name: str) -> str:
    """Return a part of a file's name out of a folder's."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)[:40]


def _spread(length: int, most: int) -> list[int]:
    """Return at most so many places of a list, evenly apart, with the first and the last."""
    if length <= most:
        return list(range(length))
    return sorted({round(place * (length - 1) / (most - 1)) for place in range(most)})


def _moving_mean(values: list[float]) -> list[float] | None:
    if len(values) <= SMOOTH_FROM:
        return None
    window = len(values) // 20
    parts = (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    return [math.fsum(part) / len(part) for part in parts]


def held_out_section(sources: ReportSources) -> ReportSection | None:
    """Return how models rank held-out pairs, beside the rule that knows lengths alone."""
    rows: list[list[str]] = []
    notes: list[str] = []
    charts = []
    for name, record in by_method(sources):
        found = record.get("held_out")
        if not isinstance(found, dict):
            continue
        method = METHODS.get(method_of(record), method_of(record))
        measures = [each for each in _measures(found) if "margin" not in each[0]]
        charts.append(_accuracy_chart(name, measures))
        rows += [
            [short(name), method, what, interval(value, low, high), number(prompts), number(pairs)]
            for what, value, low, high, prompts, pairs in measures
        ]
        notes += _verdicts(name, found)
    if not rows:
        return None
    header = ["model", "method", "which pairs", "share ranked right", "prompts", "pairs"]
    notes.append(
        "Pairs come from prompts that the model was not trained on; intervals are by the bootstrap over prompts. "
        "0.5 is chance."
    )
    notes.append("An interval without width says no more than that all prompts agree.")
    table = ReportTable("Accuracy on held-out pairs", header, rows, notes)
    title = "Accuracy on held-out pairs"
    return ReportSection("held-out-accuracy", title, charts=[chart for chart in charts if chart], tables=[table])


def _accuracy_chart(name: str, measures: list[Measured]) -> ReportChart | None:
    if not measures:
        return None
    label = short(name)
    shown = [(what, Span(value, low, high)) for what, value, low, high, _, _ in measures]
    return ReportChart(
        name=f"accuracy-{_file_name(name)}",
        title=f"Held-out accuracy of {label}",
        description="; ".join(f"{what}: {interval(*astuple(found))}" for what, found in shown),
        x_label="share ranked right (dashed: chance)",
        y_label="",
        dots=[Dot(what, found, Span(0.0)) for what, found in shown],
        is_ranked=True,
        mark=0.5,
        x_range=(-0.03, 1.03),
        table=ReportTable(
            f"Held-out accuracy of {label}",
            ["pairs", "ranked right"],
            [[what, interval(*astuple(found))] for what, found in shown],
        ),
    )


def _measures(values: Json, prefix: str = "") -> Iterator[Measured]:
    """Yield each measure with an interval, under its path."""
    for name, value in values.items():
        if not isinstance(value, dict):
            continue
        words = _WORDS.get(f"{prefix}{name}") or f"{prefix}{name}".removeprefix("accuracy_by_").replace("_", " ")
        if is_number(value.get("value")):
            low, high = (value[end] if is_number(value.get(end)) else None for end in ("low", "high"))
            prompts, rows = (value[each] if is_number(value.get(each)) else None for each in ("prompts", "rows"))
            yield words, value["value"], low, high, prompts, rows
        else:
            yield from _measures(value, f"{name}: ")


def _verdicts(name: str, found: Json) -> Iterator[str]:
    better, rule = found.get("better_than_length"), found.get("length_rule")
    prefers = rule.get("prefers") if isinstance(rule, dict) else None
    if isinstance(better, bool):
        words = f", which prefers the {short(str(prefers))} side" if prefers else ""
        yield f"{short(name)} is {'' if better else 'not '}better than the rule that knows lengths alone{words}."
    tasks = found.get("wrong_way")
    for task in tasks if isinstance(tasks, list) else []:
        yield f"{short(name)} ranks pairs of {short(str(task))} prompts the wrong way round."
    error = found.get("expected_calibration_error")
    if is_number(error):
        yield f"Expected calibration error of {short(name)}: {error:.3f}."
