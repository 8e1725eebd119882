"""Regular expressions that read what models write take no time by the square of it, in runs of one character."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from stairdata.generators.evaluations.judging import guards, matching
from stairdata.generators.prompts import task_labels, twin_rules
from stairdata.generators.structured_cot import from_hub, preference_judge
from stairdata.generators.trees import judges
from stairdata.search.refusal import refusal_rule
from stairdata_schemas import grammar
from stairdata_schemas.secrets.shapes import SHAPES
from stairdata_schemas.text import visible

HERE = Path(__file__).parent
LENGTH = 200_000
RUNS = ("\n", " ", "\t", "a", "1", "*", "-", "(", ".", "_", "\r\n", "a ", "\n ")
LEADS = ("", "score", "better", "complies", "task")
FLOOR = 0.25
"""Seconds that 200,000 characters may take; by the square of the length it is minutes."""
MODULES = (guards, matching, task_labels, twin_rules, from_hub, preference_judge, judges, grammar, visible)


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


@pytest.mark.parametrize("lead", ["", "i ", "is not ", "i'm not able to ", "important to note that "])
def test_the_refusal_rule_takes_no_square_of_the_length(lead: str) -> None:
    def taken(length: int) -> float:
        begin = time.process_time()
        refusal_rule((lead + run) * 20 + run * (length // len(run)) + "\x01")
        return time.process_time() - begin

    for run in (*RUNS, "i ", "not ", "is a "):
        whole = taken(LENGTH)
        assert whole < FLOOR or whole < 3 * taken(LENGTH // 2), f"{run!r} after {lead!r}: {whole:.2f} s"


CODE = ("stairdata", "schemas", "training", "review")
SEARCHING = {"search", "finditer", "findall", "sub", "subn", "split"}
AT_THE_START = {"match", "fullmatch"}
SHORT = 8000
SIGNS = (
    *RUNS,
    "<",
    "|",
    "[",
    "{",
    '"',
    "'",
    "\\",
    "=",
    "/",
    "#",
    "`",
    "é",
    "一",
    ":",
    "::",
    "@",
    ",",
    "1.",
    "a-",
    "<|",
    "//",
)
"""What runs are made of: also characters that mean something in Markdown, YAML, JSON, URLs and chat templates."""


class Written(NamedTuple):
    """A pattern that the code writes out, and how it is used."""

    place: str
    pattern: re.Pattern[str]
    methods: set[str]


def written_patterns() -> list[Written]:
    """Find the patterns that all four packages write as one literal, by their syntax trees."""
    found = []
    for path in sorted(path for folder in CODE for path in (HERE.parent / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {id(node.value): node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)}
        calls = [
            (node, ast.unparse(node.func.value), node.func.attr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        ]
        for node, owner, method in calls:
            if owner != "re" or method not in {"compile", *SEARCHING, *AT_THE_START}:
                continue
            pattern = node.args[0]
            if not (isinstance(pattern, ast.Constant) and isinstance(pattern.value, str)):
                continue
            flags = [ast.unparse(each) for each in (*node.args[1:], *(keyword.value for keyword in node.keywords))]
            value = sum(vars(re)[name] for each in flags for name in re.findall(r"re\.([A-Z]+)", each))
            name = ast.unparse(names[id(node)]) if id(node) in names else None
            uses = {used for _, other, used in calls if name is not None and other == name}
            methods = {method} - {"compile"} | uses
            if path.name == "yaml_core.py":  # handed to PyYAML, which matches at the start
                methods = AT_THE_START
            place = f"{path.relative_to(HERE.parent)}:{node.lineno}"
            found.append(Written(place, re.compile(pattern.value, value), methods or SEARCHING))
    return found


def seconds_of_use(written: Written, text: str) -> float:
    begin = time.process_time()
    if written.methods & SEARCHING:
        for _ in written.pattern.finditer(text):
            pass
    else:
        written.pattern.match(text)
    return time.process_time() - begin


def test_no_pattern_in_the_code_takes_the_square_of_a_run() -> None:
    """Short texts and a low floor, so that all of them can be tried: of this length, a square takes 0.1 s and more."""
    patterns = written_patterns()
    assert len(patterns) > 50
    slow = []
    for written in patterns:
        leads = ["", *re.findall(r"[A-Za-z]{3,}|[<\[({\"'=:@/#`]+", written.pattern.pattern)[:6]]
        for run in SIGNS:
            for lead in leads:
                text = lead + run * (SHORT // len(run)) + "\x01"
                taken = seconds_of_use(written, text)
                if taken > 0.04 and taken > 2.8 * seconds_of_use(written, text[: SHORT // 2] + "\x01"):
                    slow.append(f"{written.place}: {run!r} after {lead!r} takes {taken:.2f} s")
    assert not slow, "\n".join(slow)


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_of_secrets_take_no_square(name: str) -> None:
    """Each reads all that is published; only where one of its words stands."""
    shape = SHAPES[name]
    pattern = re.compile(shape.pattern)
    for lead in ("", *shape.within):
        for run in ("a", "A1", "/", "=", " ", ".", "-", lead or "x"):
            text = lead + run * (SHORT // len(run)) + "\x01"
            taken = seconds(pattern, text)
            if taken > FLOOR:
                assert taken < 3 * seconds(pattern, text[: SHORT // 2] + "\x01"), (
                    f"{run!r} after {lead!r}: {taken:.2f} s"
                )
