"""Answers of units that take several requests: kept until the unit's row is written, so that none is asked for again.

An answer that had not arrived when the process was killed is not here: it is paid for, and asked for again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from stairdata.llm.actor import RequestUsage
from stairdata.llm.client import Generation, Sample
from stairdata.llm.outcomes import Outcome
from stairdata.runs.row_journal import JOURNAL as ROWS
from stairdata_schemas.building import Build
from stairdata_schemas.files import Journal, read_journal

JOURNAL = "answers.jsonl"


class AnswerJournal:
    """The answers of units that have no row yet.

    Args:
        build: in whose folder they are kept; None keeps none: where a unit is a single request, its row is its answer.
        is_final: also what a refused unit was answered is kept for the next run, which is to refuse it again.
    """

    def __init__(self, build: Build | None, *, is_final: bool = False) -> None:
        self._is_final = is_final
        self._known: dict[str, dict[str, Generation]] = defaultdict(dict)
        self._journal: Journal | None = None
        if build is None:
            return
        self._journal = build.journal(JOURNAL)
        decided = {record["key"] for record in read_journal(build.work / ROWS)}
        for unit, names in _kept(build.work).items():
            if unit not in decided:
                self._known[unit] = {name: _generation(answer) for name, answer in names.items()}

    async def once(self, unit: str, name: str, ask: Callable[[], Awaitable[Generation]]) -> Generation:
        """Return the answer that is known, or ask for it and keep it."""
        known = self._known.get(unit, {}).get(name)
        if known is not None:
            return known
        generation = await ask()
        self._known[unit][name] = generation
        if self._journal is not None:
            record = {"unit": unit, "name": name, "answer": _plain(generation)}
            self._journal.append(record)
            await self._journal.commit()
        return generation

    def usage(self, unit: str) -> RequestUsage:
        """Sum up the answers of a unit."""
        total = RequestUsage()
        for generation in self._known.get(unit, {}).values():
            total = total.plus(RequestUsage.of(generation))
        return total

    def drop(self, unit: str, names: list[str]) -> None:
        """Let go of answers that are no use, so that the next run asks again for them alone."""
        for name in names:
            if self._known.get(unit, {}).pop(name, None) and self._journal is not None:
                self._journal.append({"unit": unit, "name": name, "answer": None})

    def release(self, unit: str) -> None:
        """Let go of a unit for this run; the next one still finds what was kept."""
        self._known.pop(unit, None)

    def forget(self, unit: str) -> None:
        """Let go of a unit that is refused for what was answered: the next run is to ask anew."""
        if self._known.pop(unit, None) and self._journal is not None and not self._is_final:
            self._journal.append({"unit": unit, "name": None})

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def kept_names(work: Path) -> list[tuple[str, str]]:
    """Return unit and name of each answer that is kept in a build's folder of work."""
    return [(unit, name) for unit, names in _kept(work).items() for name in names]


def _kept(work: Path) -> dict[str, dict[str, Any]]:
    kept: dict[str, dict[str, Any]] = defaultdict(dict)
    for record in read_journal(work / JOURNAL):
        if record["name"] is None:
            kept.pop(record["unit"], None)
        elif record["answer"] is None:
            kept[record["unit"]].pop(record["name"], None)
        else:
            kept[record["unit"]][record["name"]] = record["answer"]
    return kept


def _plain(generation: Generation) -> dict[str, Any]:
    return {
        "samples": [
            {"text": sample.text, "finish": sample.finish, "thoughts": sample.thoughts} for sample in generation.samples
        ],
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "requests": generation.requests,
        "outcomes": [str(outcome) for outcome in generation.outcomes],
        "reasoning_tokens": generation.reasoning_tokens,
    }


def _generation(plain: dict[str, Any]) -> Generation:
    samples = [Sample(**sample) for sample in plain["samples"]]
    return Generation(
        samples,
        plain["prompt_tokens"],
        plain["completion_tokens"],
        plain["requests"],
        tuple(Outcome(outcome) for outcome in plain["outcomes"]),
        plain.get("reasoning_tokens", 0),  # absent in journals of earlier releases
    )
