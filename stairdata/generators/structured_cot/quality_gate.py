"""The quality gate: what an answer of a teacher has to be, beyond the step grammar."""

from __future__ import annotations

from stairdata.recipe import GateSection
from stairdata.runs.units import UnitFailedError
from stairdata_schemas.aliases import Row
from stairdata_schemas.grammar import RULES as GRAMMAR_RULES
from stairdata_schemas.text.words import words_and_signs

RULES = {
    "too_few_steps": "the answer has fewer reasoning steps than gate.min_steps",
    "too_many_steps": "the answer has more reasoning steps than gate.max_steps",
    "too_short": "the answer has fewer characters than gate.min_characters",
    "too_long": "the answer has more characters than gate.max_characters",
    "title_repeated": "a step's body only repeats its title",
    "step_repeated": "two steps have the same body",
    "output_copies_step": "the final answer is a copy of a step's body",
    "complied": "the answer complies with a harmful request",
    "not_the_schema": "the answer was not the JSON object that was asked for",
    "cut_at_length": "the answer was cut because it was too long",
    "only_reasoning": "the thoughts before the answer took up all of its tokens",
    "refusal": "the request was refused instead of answered in the asked form",
    "content_filter": "the answer was withheld by a content filter",
}


def check_answer(row: Row, gate: GateSection) -> None:
    """Check a rendered row.

    Raises:
        UnitFailedError: with the first rule it breaks.
    """
    for rule in _broken(row, gate):
        raise UnitFailedError(rule, row["completion"])


def is_of_the_answer(rule: str) -> bool:
    """Return whether a rule of the quarantine is about what a teacher wrote, not about how a request went."""
    return rule in RULES or rule.startswith("grammar_")


def explain_rule(rule: str) -> str:
    """Say in words what a rule of the quarantine means, for the teacher that is to do better."""
    known = RULES | {f"grammar_{name}": words for name, words in GRAMMAR_RULES.items()}
    return known.get(rule, rule.replace("_", " "))


def _broken(row: Row, gate: GateSection) -> list[str]:
    steps, output = row["steps"], row["output"]
    titles = [_plain(step["title"]) for step in steps]
    bodies = [_plain(step["body"]) for step in steps]
    characters = sum(len(step["title"]) + len(step["body"]) for step in steps) + len(output)
    rules = {
        "too_few_steps": len(steps) < gate.min_steps,
        "too_many_steps": len(steps) > gate.max_steps,
        "too_short": characters < gate.min_characters,
        "too_long": characters > gate.max_characters,
        "title_repeated": any(title == body for title, body in zip(titles, bodies, strict=True)),
        "step_repeated": len(set(bodies)) < len(bodies),
        "output_copies_step": _plain(output) in bodies,
    }
    return [rule for rule, is_broken in rules.items() if is_broken]


def _plain(text: str) -> str:
    """Return words and signs alone: case, punctuation and spacing make no difference."""
    return " ".join(words_and_signs(text)) or text.strip()
