"""Tables of benchmarks/safety.py: from artifacts of kind `evaluations` to figures with intervals and comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.search.choice import best_of_curve
from stairdata.search.refusal import is_refusal, refusal_rule_note
from stairdata.statistics.comparisons import PairedComparison, compare_paired, holm
from stairdata.statistics.intervals import MeanEstimate, estimate_mean
from stairdata.statistics.reductions import Reduced, mean_over_attacks, worst_attacks
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import InputError
from stairdata_schemas.rendering import load_tokenizer

ATTACKED, HELPFUL, NO_ATTACK = "do-not-answer", "self-instruct", "none"


class MeasuredPart(NamedTuple):
    """One finished artifact."""

    model: str
    method: str
    artifact: Artifact
    folder: str
    """Of the model, whose tokenizer counts."""


class Figure(NamedTuple):
    """One number of a model: the share of refusals among some answers."""

    name: str
    model: str
    values: Reduced | None
    """Of each prompt, from the answers that can be read; None where there are none."""
    as_they_are: Reduced | None
    """The same with cut answers judged by what there is of them; empty ones are no refusals."""
    answers: int
    unread: int
    """Cut or empty ones; nothing is known of them."""
    bounds: tuple[float, float]
    """The mean if all of these were refusals, and if none were."""
    tokens: float | None
    """Of an answer, on average."""


def write_tables(made: Sequence[MeasuredPart], attacks: Sequence[str], folder: Path) -> None:
    """Write table.md and table.json."""
    rows = {(part.model, part.method): rows_of(part) for part in made}
    seen = {prompt_id for part in made for prompt_id in seen_in_training(part)}
    once = {model: of_model for (model, method), of_model in rows.items() if method == "sample"}
    figures = [figure for model, of_model in once.items() for figure in single_figures(model, of_model, attacks, seen)]
    searched = list(dict.fromkeys(part.model for part in made if part.method != "sample"))
    found = [each for model in searched for each in search_figures(model, made, rows)]
    lines, values = ["# Safety, measured"], Json()
    for title, of_table, pairs in (
        ("One answer to each prompt", figures, pairs_of(list(once))),
        ("Search at test time", found, search_pairs(found)),
    ):
        if not of_table:
            continue
        compared = compare(of_table, pairs)
        figures_as_json, comparisons = [as_json(each) for each in of_table], [each.as_json() for each in compared]
        lines += ["", f"## {title}", "", *figure_table(of_table), "", *comparison_table(compared)]
        values[title] = {"figures": figures_as_json, "comparisons": comparisons}
    lines += ["", "## What it took", "", *cost_table(made), "", *notes(made)]
    values["cost"] = [cost_of(part) for part in made]
    values["seen_in_training"] = {part.model: part.artifact.manifest.details["seen_in_training"] for part in made}
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


# -- rows --------------------------------------------------------------------------------------------------------


def rows_of(part: MeasuredPart) -> pl.DataFrame:
    """Read an artifact, with the tokens of each answer."""
    tokenizer = load_tokenizer(part.folder)
    columns = ("prompt_id", "benchmark", "attack", "sample", "response_id", "response", "refused")
    rows = []
    for row in part.artifact.scan().select(*columns, "details").collect().iter_rows(named=True):
        details = json.loads(row.pop("details"))
        tokens = len(tokenizer.encode(row["response"], add_special_tokens=False))
        known = row["refused"]
        words = known if known is not None else is_refusal(row["response"])
        label, score = details.get("label"), details.get("prm_score")
        rows.append(row | {"label": label, "prm_score": score, "tokens": tokens, "words": words})
    schema = {"refused": pl.Boolean, "label": pl.String, "prm_score": pl.Float64, "words": pl.Boolean}
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)


def seen_in_training(part: MeasuredPart) -> Iterator[str]:
    """Yield the prompts of an artifact that its model was trained on."""
    for seen in part.artifact.manifest.details["seen_in_training"].values():
        yield from seen["prompts"]


# -- figures -----------------------------------------------------------------------------------------------------


def single_figures(model: str, rows: pl.DataFrame, attacks: Sequence[str], seen: set[str]) -> Iterator[Figure]:
    """Yield what one answer to each prompt says of a model."""
    harmful, plain = pl.col("benchmark") == ATTACKED, pl.col("attack") == NO_ATTACK
    under_attack = rows.filter(harmful & ~plain)
    is_attacked = pl.col("prompt_id").is_in(under_attack["prompt_id"].unique().to_list())
    unseen = ~pl.col("prompt_id").is_in(sorted(seen))
    yield figure_of("harmful", model, rows.filter(harmful & plain))
    if seen:
        yield figure_of("harmful, not trained on by any of them", model, rows.filter(harmful & plain & unseen))
    yield figure_of(
        "harmful, those that are attacked, without an attack", model, rows.filter(harmful & plain & is_attacked)
    )
    for attack in attacks:
        yield figure_of(f"harmful, under {attack}", model, rows.filter(harmful & (pl.col("attack") == attack)))
    yield figure_of("harmful, mean over these attacks", model, under_attack, mean_over_attacks)
    yield figure_of("harmful, worst of these attacks for each prompt", model, under_attack, worst_attacks)
    yield from xstest_figures(model, rows)
    yield figure_of("helpful (over-refusal)", model, rows.filter(pl.col("benchmark") == HELPFUL))


def xstest_figures(model: str, rows: pl.DataFrame) -> Iterator[Figure]:
    """Yield both sides of XSTest."""
    for label, name in (("unsafe", "XSTest unsafe"), ("safe", "XSTest safe (over-refusal)")):
        yield figure_of(name, model, rows.filter((pl.col("benchmark") == "xstest") & (pl.col("label") == label)))


def figure_of(name: str, model: str, rows: pl.DataFrame, reduce: Callable[..., Reduced] = mean_over_attacks) -> Figure:
    """Reduce rows to one value a prompt."""
    readable = rows.filter(pl.col("refused").is_not_null())

    def filled(value: float) -> float:
        known = rows.with_columns(pl.col("refused").cast(pl.Float64).fill_null(value))
        return float(reduce(known, value="refused").scores.mean())

    return Figure(
        name,
        model,
        reduce(readable, value="refused") if len(readable) else None,
        reduce(rows, value="words") if len(rows) else None,
        len(rows),
        len(rows) - len(readable),
        (filled(1.0), filled(0.0)) if len(rows) else (1.0, 0.0),
        float(rows["tokens"].mean()) if len(rows) else None,  # type: ignore[arg-type]  # a mean of integers
    )


def search_figures(
    model: str, made: Sequence[MeasuredPart], rows: dict[tuple[str, str], pl.DataFrame]
) -> Iterator[Figure]:
    """Yield what each method of search says of a model."""
    for part in made:
        if part.model != model or part.method == "sample":
            continue
        frame = rows[model, part.method]
        sampled = part.artifact.manifest.usage.completion_tokens / frame["response_id"].n_unique()
        samples = int(frame["sample"].max()) + 1  # type: ignore[arg-type]  # whole numbers
        for k in best_of_sizes(samples) if part.method == "best_of_n" else [None]:
            chosen = frame if k is None else best_of(frame, k)
            name = part.method if k is None else f"best of {k}"
            harmful = figure_of("harmful", f"{model}, {name}", chosen.filter(pl.col("benchmark") == ATTACKED))
            for figure in (harmful, *xstest_figures(f"{model}, {name}", chosen)):
                yield figure._replace(tokens=sampled * (k or samples) / samples)


def best_of_sizes(samples: int) -> list[int]:
    """Return 1, 2, 4, ... up to the number of samples."""
    return [2**power for power in range(samples.bit_length()) if 2**power <= samples]


def best_of(rows: pl.DataFrame, k: int) -> pl.DataFrame:
    """Return one row a response: how likely the best of k of its samples is a refusal, over all choices of k."""
    chosen = []
    for samples in rows.sort("sample").partition_by("response_id", maintain_order=True):
        read, words = (_expected(samples, k, column) for column in ("refused", "words"))
        chosen.append(samples.row(0, named=True) | {"refused": read, "words": words})
    schema = {"refused": pl.Float64, "words": pl.Float64, "prm_score": pl.Float64, "label": pl.String}
    return pl.DataFrame(chosen, schema_overrides=schema, infer_schema_length=None)


def _expected(samples: pl.DataFrame, k: int, column: str) -> float | None:
    """Average a column over the choices of k samples, of each of which the process reward model takes the best."""
    candidates = [
        {"text": row["response"], "score": row["prm_score"], "tokens": row["tokens"], column: row[column]}
        | {"is_complete": row["refused"] is not None}
        for row in samples.iter_rows(named=True)
    ]

    def measure(row: Row) -> float | None:
        value = row["candidates"][row["chosen_index"]][column]
        return None if value is None else float(value)

    response = {"response_id": samples["response_id"][0], "method": "sample", "candidates": candidates}
    return best_of_curve([response], measure)[k - 1].mean


# -- comparisons -------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """How one model differs from another in one figure."""

    name: str
    a: str
    b: str
    paired: PairedComparison | None
    """None where no prompt has a readable answer of both."""
    adjusted: float | None
    """p-value, adjusted for all of its table."""
    as_they_are: MeanEstimate | None
    """The difference with cut answers judged by what there is of them."""

    def as_json(self) -> Json:
        paired = self.paired.as_json() if self.paired else None
        read = self.as_they_are.as_json() if self.as_they_are else None
        names = {"figure": self.name, "a": self.a, "b": self.b}
        return names | {"paired": paired, "holm_p": self.adjusted, "difference_as_they_are": read}


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return each model with the one before it, then the last with the first."""
    following = list(pairwise(models))
    return [*following, (models[0], models[-1])] if len(models) > 2 else following


def search_pairs(figures: Sequence[Figure]) -> list[tuple[str, str]]:
    """Return each method of search with a single sample, and the beam search with four samples."""
    names = dict.fromkeys(figure.model for figure in figures)
    with_one = [(f"{name.partition(', ')[0]}, best of 1", name) for name in names if not name.endswith(" best of 1")]
    beams = [name for name in names if name.endswith(" beam")]
    return with_one + [(name.replace(" beam", " best of 4"), name) for name in beams]


def compare(figures: Sequence[Figure], pairs: Sequence[tuple[str, str]]) -> list[Compared]:
    """Compare models in each figure, paired by prompt; all p-values are of one table."""
    by_name: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_name.setdefault(figure.name, {})[figure.model] = figure
    found = [
        Compared(name, a, b, _paired(models[a].values, models[b].values), None, _difference(models[a], models[b]))
        for name, models in by_name.items()
        for a, b in pairs
    ]
    adjusted = iter(holm([each.paired.p_value for each in found if each.paired]))
    return [each._replace(adjusted=next(adjusted)) if each.paired else each for each in found]


def _paired(a: Reduced | None, b: Reduced | None) -> PairedComparison | None:
    if a is None or b is None:
        return None
    try:
        return compare_paired(a[:2], b[:2])
    except InputError:  # no prompt in common
        return None


def _difference(a: Figure, b: Figure) -> MeanEstimate | None:
    paired = _paired(a.as_they_are, b.as_they_are)
    return paired.difference if paired else None


# -- words -------------------------------------------------------------------------------------------------------


def figure_table(figures: Sequence[Figure]) -> list[str]:
    """Return the lines of the table of figures, those of the same name together."""
    lines = [
        "| refused | model | of answers that can be read | prompts | cut or empty | were these refusals, or none "
        "| cut ones as they are | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(figure.name for figure in figures))
    ordered = sorted(figures, key=lambda figure: names.index(figure.name))  # stable: models stay in their order
    return [*lines, *(f"| {each.name} | {each.model} | {' | '.join(_cells(each))} |" for each in ordered)]


def _cells(figure: Figure) -> list[str]:
    read = as_they_are = bounds = ""
    prompts = 0
    if figure.values is not None:
        estimate = estimate_mean(*figure.values[:2])
        read, prompts = shown(estimate), estimate.clusters
    if figure.unread:
        bounds = ", ".join(f"{each:.3f}" for each in figure.bounds)
    if figure.unread and figure.as_they_are is not None:
        as_they_are = shown(estimate_mean(*figure.as_they_are[:2]))
    tokens = f"{figure.tokens:.0f}" if figure.tokens is not None else ""
    unread = f"{figure.unread} of {figure.answers}" if figure.unread else "0"
    return [read, str(prompts), unread, bounds, as_they_are, tokens]


def comparison_table(compared: Sequence[Compared]) -> list[str]:
    """Return the lines of the table of differences."""
    lines = [
        "| refused | difference | 95% | p (Holm) | least visible | prompts | cut ones as they are |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in compared:
        head = f"| {each.name} | {each.b} - {each.a} |"
        read = shown(each.as_they_are, signed=True) if each.as_they_are else ""
        if each.paired is None:
            lines.append(f"{head} no answers of both can be read |  |  | 0 | {read} |")
            continue
        visible = each.paired.least_visible
        cells = [
            shown(each.paired.difference, signed=True),
            f"{each.adjusted:.4f}",
            f"{visible:.3f}" if visible is not None else "",
            str(each.paired.shared),
            read,
        ]
        lines.append(f"{head} {' | '.join(cells)} |")
    return lines


def shown(estimate: MeanEstimate, *, signed: bool = False) -> str:
    """Return a mean with its interval."""
    form = "+.3f" if signed else ".3f"
    ends = f" ({estimate.low:{form}} to {estimate.high:{form}})" if estimate.low is not None else ""
    return f"{estimate.mean:{form}}{ends}"


def cost_table(made: Sequence[MeasuredPart]) -> list[str]:
    """Return the lines of the table of costs."""
    lines = ["| part | rows | requests | prompt tokens | completion tokens | s |", "|---|---|---|---|---|---|"]
    for part in made:
        cost = cost_of(part)
        cells = [cost["rows"], cost["requests"], cost["prompt_tokens"], cost["completion_tokens"]]
        numbers = " | ".join(f"{cell:,}" for cell in cells)
        lines.append(f"| {part.model}, {part.method} | {numbers} | {cost['seconds']:,.0f} |")
    seconds = sum(cost_of(part)["seconds"] for part in made)
    return [*lines, "", f"In all {seconds / 60:.1f} minutes, each part as long as the run that finished it."]


def cost_of(part: MeasuredPart) -> dict[str, Any]:
    """Return what a part asked, and how long its last run took."""
    manifest = part.artifact.manifest
    names = ("requests", "prompt_tokens", "completion_tokens")
    usage = {name: getattr(manifest.usage, name) for name in names}
    head = {"model": part.model, "method": part.method, "artifact": part.artifact.reference, "rows": manifest.rows}
    return head | usage | {"seconds": manifest.seconds}


def notes(made: Sequence[MeasuredPart]) -> list[str]:
    """Say what a reader has to know: the rule, what is missing, and what was trained on."""
    lines = [f"- {refusal_rule_note()}"]
    for part in made:
        details = part.artifact.manifest.details
        if missing := sum(each["rows"] for each in details["unread"]):
            lines.append(f"- {part.model}, {part.method}: {missing} rows have no answer, and count in no figure")
        for seen in details["seen_in_training"].values() if part.method == "sample" else ():
            lines.append(f"- {part.model} was trained on {len(seen['prompts'])} of the prompts")
            lines += [f"- not looked at: {each}" for each in seen["missing"]]
    return lines


def as_json(figure: Figure) -> Json:
    """Return a figure with its interval."""
    read, words = (
        estimate_mean(*each[:2]).as_json() if each is not None else None for each in (figure.values, figure.as_they_are)
    )
    head = {"figure": figure.name, "model": figure.model, "refused": read, "cut_as_they_are": words}
    return head | {"answers": figure.answers, "unread": figure.unread, "bounds": figure.bounds, "tokens": figure.tokens}
