"""Curves of a training as PNG: figures alone, never text of rows or answers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

_COLOR, _LIGHT = "#3b6ea8", "#b9cde4"
_POINTS_LEFT_AS_THEY_ARE = 40


class Curve(NamedTuple):
    """A rendered plot."""

    file: str
    caption: str
    png: bytes


class _Series(NamedTuple):
    """Steps and a figure of each."""

    steps: list[int]
    values: list[float]


def curves(record: Mapping[str, Any]) -> list[Curve]:
    """Draw what a record has figures for; nothing without matplotlib (`pip install 'stairdata[publish]'`)."""
    if find_spec("matplotlib") is None:
        return []
    return [
        *_plot("loss.png", "Loss by optimizer step", {"loss": _series(record, "loss")}),
        *_plot(
            "margin.png",
            "Margin of the implicit rewards, and share of pairs ranked as they are labelled, in training",
            {
                name: _series(record, f"rewards/{key}")
                for name, key in (("margin", "margins"), ("accuracy", "accuracies"))
            },
        ),
        *_calibration(record),
    ]


def _series(record: Mapping[str, Any], key: str) -> _Series:
    """Return what was logged under a name; a loss may be in the summary alone."""
    entries = [entry for entry in _list(record, "metrics") if isinstance(entry, Mapping)]
    points: list[Sequence[Any]] = [(entry.get("step"), entry.get(key)) for entry in entries]
    if key == "loss" and not any(value is not None for _, value in points):
        losses = _list(record.get("summary"), "losses")
        points = [point for point in losses if isinstance(point, list | tuple) and len(point) == 2]
    fit = [(step, float(value)) for step, value in points if _is_number(step) and _is_number(value)]
    return _Series([step for step, _ in fit], [value for _, value in fit])


def _list(part: Any, name: str) -> list[Any]:
    found = part.get(name) if isinstance(part, Mapping) else None
    return list(found) if isinstance(found, list | tuple) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plot(file: str, caption: str, series: Mapping[str, _Series]) -> list[Curve]:
    """Draw one series above the other; [] where none has a value."""
    drawn = {name: found for name, found in series.items() if found.steps}
    if not drawn:
        return []

    def draw(axes: Sequence[Any]) -> None:
        for axis, (name, (steps, values)) in zip(axes, drawn.items(), strict=True):
            smooth = _moving_mean(values)
            marker = "o" if len(values) == 1 else None
            axis.plot(steps, values, color=_COLOR if smooth is None else _LIGHT, linewidth=1, marker=marker)
            if smooth is not None:
                axis.plot(steps, smooth, color=_COLOR, linewidth=1.5)
            axis.set_ylabel(name)
        axes[-1].set_xlabel("step")

    return [Curve(file, caption, _figure(len(drawn), draw))]


def _moving_mean(values: Sequence[float]) -> list[float] | None:
    """Return the mean of the steps up to each one, so far as they are near it; None where there are few."""
    if len(values) <= _POINTS_LEFT_AS_THEY_ARE:
        return None
    window = len(values) // 20
    return [
        math.fsum(near) / len(near)
        for near in (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    ]


def _calibration(record: Mapping[str, Any]) -> list[Curve]:
    points = [
        (found["confidence"], found["accuracy"])
        for found in _list(record.get("held_out"), "calibration")
        if isinstance(found, Mapping) and _is_number(found.get("confidence")) and _is_number(found.get("accuracy"))
    ]
    if not points:
        return []

    def draw(axes: Sequence[Any]) -> None:
        axes[0].plot([0.5, 1], [0.5, 1], color=_LIGHT, linewidth=1)
        axes[0].plot(*zip(*points, strict=True), color=_COLOR, linewidth=1, marker="o")
        axes[0].set_xlim(0.48, 1.02)
        axes[0].set_ylim(-0.02, 1.02)
        axes[0].set_xlabel("confidence, sigmoid(|difference of scores|)")
        axes[0].set_ylabel("share of pairs ranked right")

    caption = "Calibration on held-out pairs: on the straight line, the model is right as often as it is sure"
    return [Curve("calibration.png", caption, _figure(1, draw))]


def _figure(rows: int, draw: Callable[[Sequence[Any]], None]) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(6, 1.2 + 1.9 * rows), dpi=100, layout="tight")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    draw(list(axes))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
