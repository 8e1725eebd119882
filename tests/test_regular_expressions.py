"""Regular expressions that read what models write take no time by the square of it, in runs of one character."""

from __future__ import annotations

import re
import time

import pytest

from stairdata.generators.prompts import task_labels
from stairdata.generators.structured_cot import from_hub, preference_judge
from stairdata.generators.trees import judges
from stairdata_schemas import grammar
from stairdata_schemas.text import visible

LENGTH = 200_000
RUNS = ("\n", " ", "\t", "a", "1", "*", "-", "(", ".", "_", "\r\n", "a ", "\n ")
LEADS = ("", "score", "better", "complies", "task")
FLOOR = 0.25
"""Seconds that 200,000 characters may take; by the square of the length it is minutes."""
MODULES = (task_labels, from_hub, preference_judge, judges, grammar, visible)


def compiled(value: object) -> list[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        return [value] if isinstance(value.pattern, str) else []
    if isinstance(value, dict):
        value = list(value.values())
    return [pattern for each in value for pattern in compiled(each)] if isinstance(value, list | tuple) else []


PATTERNS = sorted({pattern for module in MODULES for value in vars(module).values() for pattern in compiled(value)},
                  key=lambda pattern: pattern.pattern)  # fmt: skip


def seconds(pattern: re.Pattern[str], text: str) -> float:
    begin = time.process_time()
    for _ in pattern.finditer(text):
        pass
    return time.process_time() - begin


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.pattern[:40])
def test_time_grows_with_the_length(pattern: re.Pattern[str]) -> None:
    for run in RUNS:
        for lead in LEADS:
            size = 1000
            while size <= LENGTH:  # stops as soon as the growth shows, long before a square takes minutes
                text = lead + run * (size // len(run)) + "\x01"
                taken = seconds(pattern, text)
                if taken > FLOOR:
                    half = seconds(pattern, lead + run * (size // 2 // len(run)) + "\x01")
                    assert taken < 3 * half, f"{run!r} after {lead!r}: {half:.2f} s, of twice the length {taken:.2f} s"
                size *= 2


def test_patterns_are_found() -> None:
    assert len(PATTERNS) > 12
