"""Reading benchmarks: files or Hub datasets, mapped, checked and sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from stairdata.generators.evaluations.benchmarks.benchmark import BenchmarkPrompt, PinnedBenchmark
from stairdata.generators.evaluations.benchmarks.known import (
    KNOWN_BENCHMARKS,
    KnownBenchmark,
    benchmark_like,
    known_benchmark,
)
from stairdata.generators.prompts.decontamination import files_hash
from stairdata.generators.prompts.files import BrokenRow, ClassName
from stairdata.generators.prompts.hub_datasets import hub_license, hub_revision
from stairdata.generators.prompts.mapping import MISSING, PinnedSource, is_wanted, raw_rows, value_at
from stairdata.recipe import BenchmarkSection, PromptSource
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata.runs.row_sampling import BottomSample
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import InputError, RecipeError, quote, suggest
from stairdata_schemas.kinds import TASKS
from stairdata_schemas.quarantine import QuarantineRow
from stairdata_schemas.text.visible import is_blank

_COLUMNS = ("prompt", "task", "category", "label", "reference_answer")
_NEEDED: dict[BenchmarkScore, str] = {
    "xstest": "label",
    "label": "label",
    "winrate": "reference_answer",
    "gsm8k": "reference_answer",
    "simpleqa": "reference_answer",
}
"""What a score can't do without, besides the prompt."""


def pin_benchmarks(sections: Sequence[BenchmarkSection]) -> list[PinnedBenchmark]:
    """Resolve benchmarks to files or commits, and say how each is read and scored; nothing is read yet.

    Raises:
        RecipeError: two of one name, none of that name, no place to read it from, or no revision.
        InputError: a file that can't be read, or the Hub can't be reached.
    """
    names = [section.name for section in sections]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"two benchmarks are called {quote(twice[0])}; give one another name, and `like:`")
    return [_pinned(section, number) for number, section in enumerate(sections)]


def _pinned(section: BenchmarkSection, number: int) -> PinnedBenchmark:
    known = benchmark_like(section.like) if section.like else known_benchmark(section.name)
    if known is None and not section.columns:
        raise RecipeError(
            f"the benchmark {quote(section.name)} is not one that this release knows; "
            f"{suggest(section.name, KNOWN_BENCHMARKS, 0.4)} For one of your own, give path and "
            "`columns: {prompt: NAME}`"
        )
    if section.path is not None and section.hub is not None:
        raise RecipeError(f"the benchmark {quote(section.name)} has a path and a hub; give one of them")
    source = _from_file(section, number) if section.path is not None else _from_hub(section, known, number)
    score = section.score or (known.score if known else "winrate" if section.task == "helpfulness" else "refusal")
    path = source.source.path
    return PinnedBenchmark(section, source, known, score, files_hash(path, source) if path else None)


def _from_file(section: BenchmarkSection, number: int) -> PinnedSource:
    assert section.path is not None
    path = section.path.expanduser()
    if not path.exists():
        raise InputError(f"the benchmark {quote(section.name)}: {path} does not exist")
    return PinnedSource(PromptSource(path=path, where=section.where, license=section.license), None, number)


def _from_hub(section: BenchmarkSection, known: KnownBenchmark | None, number: int) -> PinnedSource:
    hub = section.hub or (known.hub if known else None)
    if hub is None:
        place = f" ({known.place})" if known and known.place else ""
        raise RecipeError(f"the benchmark {quote(section.name)} is read from a file{place}; give `path:`")
    is_its_own = known is not None and known.hub is not None and known.hub.lower() == hub.lower()
    tested = known.revision if known and is_its_own else None
    revision = section.revision or tested
    if revision is None:
        raise RecipeError(
            f"the benchmark {quote(section.name)} would be read from {hub} at no known commit; give `revision:`, a "
            "commit, or `main` for what it is today (the commit is recorded), or `path:` of a file"
        )
    commit = hub_revision(hub, revision)
    stated = section.license or (known.license if known and is_its_own else None) or hub_license(hub, commit)
    source = PromptSource(
        hub=hub,
        revision=commit,
        config=section.config or (known.config if known and is_its_own else None),
        split=section.split or (known.split if known and is_its_own else "test"),
        where=section.where,
        license=stated,
    )
    return PinnedSource(source, None, number)


def load_benchmarks(
    benchmarks: Sequence[PinnedBenchmark], seed: int, refused: list[QuarantineRow]
) -> list[BenchmarkPrompt]:
    """Read the prompts of benchmarks, one after the other, each in the order of its rows.

    Args:
        benchmarks: as `pin_benchmarks` returns them.
        seed: of the sample where a benchmark has a `count`.
        refused: rows that can't be taken are appended.

    Raises:
        InputError: one can't be read, lacks a column in all rows, or gives no prompt.
    """
    return [prompt for benchmark in benchmarks for prompt in _load(benchmark, seed, refused)]


def _load(benchmark: PinnedBenchmark, seed: int, refused: list[QuarantineRow]) -> list[BenchmarkPrompt]:
    first: dict[str, str] = {}
    found: list[BenchmarkPrompt] = []
    for place, number, prompt in _sound(benchmark, refused):
        if prompt.prompt_id in first:
            detail = f"repeats {first[prompt.prompt_id]}"
            refused.append(QuarantineRow(place, number, "duplicate_prompt", prompt.prompt, "prompt", detail))
        else:
            first[prompt.prompt_id] = f"{place} row {number}"
            found.append(prompt)
    if not found:
        where = f" where {benchmark.section.where}" if benchmark.section.where else ""
        raise InputError(f"the benchmark {quote(benchmark.name)} ({benchmark.source.name}) gave no prompt{where}")
    count = benchmark.section.count
    if count is None or count >= len(found):
        return found
    sample: BottomSample[BenchmarkPrompt] = BottomSample(count, seed)
    for prompt in found:
        sample.add(prompt.prompt_id, prompt)
    return [prompt for prompt in found if prompt.prompt_id in sample]


def _sound(benchmark: PinnedBenchmark, refused: list[QuarantineRow]) -> Iterator[tuple[str, int, BenchmarkPrompt]]:
    """Yield the rows that can be taken, with where they stand."""
    search = _Columns(benchmark)
    where = benchmark.source.source.model_copy(update={"where": benchmark.section.where or _usual_where(benchmark)})
    for place, number, raw in islice(raw_rows(benchmark.source), benchmark.section.limit):
        if isinstance(raw, BrokenRow):
            refused.append(QuarantineRow(place, number, raw.rule, raw.raw, detail=raw.detail))
            continue
        search.look(raw)
        if not is_wanted(raw, where):
            continue
        row = _mapped(raw, benchmark)
        fault = _fault(row, benchmark.score)
        if fault is None:
            yield (
                place,
                number,
                BenchmarkPrompt(
                    identity.prompt_id(row["prompt"]), row["prompt"], benchmark.name, row["task"], *_others(row)
                ),
            )
        else:
            text = json.dumps(raw, ensure_ascii=False, default=str)
            refused.append(QuarantineRow(place, number, fault[0], text, fault[1]))
    search.finish()


def _others(row: Row) -> tuple[str | None, str | None, str | None]:
    return row["category"], row["label"], row["reference_answer"]


def _usual_where(benchmark: PinnedBenchmark) -> dict[str, Any]:
    """Return which rows of a known benchmark are meant, where the recipe renames no column."""
    is_native = benchmark.known is not None and not benchmark.section.columns
    return dict(benchmark.known.where) if is_native and benchmark.known else {}


def _mapped(raw: Row, benchmark: PinnedBenchmark) -> Row:
    section = benchmark.section
    named = {str(ours): value_at(raw, theirs) for ours, theirs in section.columns.items()}
    named = {ours: value for ours, value in named.items() if value is not MISSING}
    if benchmark.known is not None:
        row = benchmark.known.mapped(raw | named)
    else:
        row = {ours: raw.get(ours) for ours in _COLUMNS} | named
    row = {ours: _text(row.get(ours)) for ours in _COLUMNS}
    row["task"] = section.task or row["task"]
    return row


def _text(value: Any) -> Any:
    """Return a label or number as text, as CSV has it."""
    if isinstance(value, ClassName) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return str(value)
    return value


def _fault(row: Row, score: BenchmarkScore) -> tuple[str, str] | None:
    """Return the rule that a row breaks, and its field."""
    for field in dict.fromkeys(("prompt", _NEEDED.get(score, "prompt"))):
        if row[field] is None:
            return "missing_value", field
    for field in _COLUMNS:
        if not isinstance(row[field], str | None):
            return "wrong_type", field
        if any("\ud800" <= character <= "\udfff" for character in row[field] or ""):
            return "not_unicode", field
    return _fault_of_values(row, score)


def _fault_of_values(row: Row, score: BenchmarkScore) -> tuple[str, str] | None:
    if is_blank(row["prompt"]):
        return "blank", "prompt"
    if row["task"] is not None and row["task"] not in TASKS:
        return "unknown_task", "task"
    if score == "xstest" and row["label"] not in ("safe", "unsafe"):
        return "unknown_label", "label"
    return None


class _Columns:
    """Looks for the needed columns in all rows, since many writers of JSON leave out keys without a value."""

    def __init__(self, benchmark: PinnedBenchmark) -> None:
        self._benchmark = benchmark
        self._lacking = list(_needs(benchmark))
        self._names: dict[str, None] = {}

    def look(self, raw: Row) -> None:
        """Look into one row; all rows of a Hub dataset have the same columns, so there the first decides."""
        if self._lacking:
            self._names |= dict.fromkeys(map(str, raw))
            self._lacking = [
                need for need in self._lacking if all(value_at(raw, name) is MISSING for name in need.split("|"))
            ]
            if self._benchmark.source.source.hub is not None:
                self.finish()

    def finish(self) -> None:
        """Say that a column is in no row.

        Raises:
            InputError: it is so.
        """
        if self._lacking and self._names:
            need = " or ".join(map(repr, self._lacking[0].split("|")))
            ours = self._lacking[0].partition("|")[0]
            raise InputError(
                f"{self._benchmark.source.name} has no column {need}, which the benchmark "
                f"{quote(self._benchmark.name)} needs (its columns: {', '.join(self._names)}); name the column that "
                f"holds it: `columns: {{{ours if ours in _COLUMNS else 'prompt'}: NAME}}`"
            )


def _needs(benchmark: PinnedBenchmark) -> Iterator[str]:
    """Yield columns that have to be there: those that the recipe names, and in their place those of a known layout."""
    columns = {str(ours): theirs for ours, theirs in benchmark.section.columns.items()}
    yield from columns.values()
    yield from benchmark.section.where
    if benchmark.known is not None:
        groups = benchmark.known.needs
        yield from (need for need in groups if need.partition("|")[0] not in columns)
    else:
        needed = ["prompt", _NEEDED.get(benchmark.score, "prompt")]
        yield from dict.fromkeys(name for name in needed if name not in columns)
