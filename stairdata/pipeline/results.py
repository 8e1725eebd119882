"""What a run writes beside its artifacts and models: rounds.csv, rounds.png, summary.json, and the report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stairdata.pipeline import measures
from stairdata.pipeline.model_folders import owner
from stairdata.recipe import MEASURES
from stairdata.report.overview.sources import Places, find_sources
from stairdata.report.overview.writing import PLACE
from stairdata.report.overview.writing import write_report as write_page
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import StairDataError
from stairdata_schemas.files import write_atomic

INTERVALS = ("held_out_accuracy_low", "held_out_accuracy_high")
COLUMNS = ("round", "model", "prompts", "pairs", *MEASURES, *INTERVALS)
SCORES = "scores.json"
COLUMNS_OF_PLOTS = 3


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    """Write rounds.csv: a row for the start model, for SFT, and for each round so far; no value is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "rounds.csv", text.getvalue())


def write_plot(folder: Path, rows: Sequence[Row], tell: Callable[[str], None]) -> None:
    """Draw rounds.png, one small plot a measure, or say what it takes."""
    drawn = [name for name in MEASURES if any(row.get(name) is not None for row in rows)]
    if not drawn:
        return
    if find_spec("matplotlib") is None:
        tell("rounds.png is left out: it needs matplotlib (pip install 'stairdata[publish]'); rounds.csv is complete")
        return
    write_atomic(folder / "rounds.png", _plot(rows, drawn))


def _plot(rows: Sequence[Row], drawn: Sequence[str]) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    height = -(-len(drawn) // COLUMNS_OF_PLOTS)
    figure = Figure(figsize=(10, 2.6 * height), dpi=100, layout="tight")
    for place, name in enumerate(drawn, 1):
        axes = figure.add_subplot(height, COLUMNS_OF_PLOTS, place)
        with_value = [row for row in rows if row.get(name) is not None]
        axes.plot([row["model"] for row in with_value], [row[name] for row in with_value], marker="o", color="#3b6ea8")
        if name == "held_out_accuracy":
            _draw_interval(axes, with_value)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_interval(axes: Any, rows: Sequence[Row]) -> None:
    low, high = INTERVALS
    known = [row for row in rows if row.get(low) is not None]
    axes.vlines(
        [row["model"] for row in known], [row[low] for row in known], [row[high] for row in known], color="#3b6ea8"
    )


def write_summary(folder: Path, summary: Json) -> None:
    """Write summary.json."""
    write_atomic(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def write_report(folder: Path, tell: Callable[[str], None]) -> str | None:
    """Write the page of a run, and return where it is; None where it can't be made, which no run fails of."""
    page = folder / PLACE
    try:
        sources = find_sources(Places(folder / "artifacts", folder))
        write_page(sources, page, f"Report of the run {folder.resolve().name}", tell=tell)
    except (StairDataError, OSError) as error:
        tell(f"warning: no report was written; `stairdata report --folder {folder}` tries again: {error}")
        return None
    return str(page)


def table(
    folder: Path, answers: dict[str, Artifact], best: Artifact | None, prm: str, n: int
) -> dict[str, measures.Measures]:
    """Return the summary's table: a column for each model's single answers, and one for the best of n of the last."""
    found = {
        name: measures.table_column(measures.first_candidates(each), _scores(folder, each, prm))
        for name, each in answers.items()
    }
    if best is not None:
        rows = measures.chosen_candidates(best)
        found[f"{[*answers][-1]}, best of {n}"] = measures.table_column(rows, [row["score"] for row in rows])
    return found


def _scores(folder: Path, answers: Artifact, prm: str) -> list[float]:
    """Return the PRM's scores of single answers; those that were made before are kept in a file."""
    kept = _read_scores(folder / SCORES)
    key = f"{answers.manifest.content_hash}/{owner(Path(prm))}"
    if key not in kept:
        from stairdata_training.scoring import PrmScorer

        rows = measures.first_candidates(answers)
        items = [(row["prompt"], row["text"], row["is_complete"]) for row in rows]
        kept[key] = PrmScorer.load(prm).score(items)
        write_atomic(folder / SCORES, json.dumps(kept))
    scores: list[float] = kept[key]
    return scores


def _read_scores(file: Path) -> dict[str, Any]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
