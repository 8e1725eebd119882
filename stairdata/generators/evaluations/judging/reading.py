"""Reading a judge's words: lines of a label and a value, as rubrics ask for them."""

from __future__ import annotations

from collections.abc import Collection

from stairdata.llm.wrapping import without_thoughts

_MARKS = " \t*_`#>\"'()[]<"
_SEPARATORS = " \t*_`\"':=()[]<>"
_ENDS = " \t*_`\"'.;,)(]>"


def value_of(text: str, *labels: str) -> str | None:
    """Return what stands behind a label that begins a line, in lower case and without marks; None without one.

    Thoughts before the answer are not read. Of several lines the last counts, since the reasoning comes first.

    Args:
        text: the judge's words.
        labels: of the same value, in lower case.
    """
    found = None
    for line in without_thoughts(text).split("\n"):
        plain = line.strip().removeprefix("- ").strip(_MARKS).lower()
        for label in labels:
            rest = plain.removeprefix(label)
            # "1.b 2" and "refused: no", not "refusedly" and not "1.bc"
            if rest != plain and not rest[:1].isalnum():
                found = rest.lstrip(_SEPARATORS).removeprefix("- ").lstrip(_SEPARATORS).rstrip(_ENDS)
    return found


def whole_value(text: str) -> str:
    """Return a judge's answer that is a value and nothing else, in lower case and without marks."""
    return without_thoughts(text).strip().strip(_MARKS + _ENDS).lower()


def number_in(value: str | None, allowed: Collection[int]) -> int | None:
    """Return a number, alone or "4/5", "4 out of 5", "4 (somewhat convincing)"; None for any other words.

    Args:
        value: what stands behind a label.
        allowed: the numbers of the scale; others can't be read.
    """
    if value is None:
        return None
    top = max(allowed)
    head, _, _ = value.partition("(")
    head = head.rstrip(_ENDS).replace(f"/{top}", "").replace(f"out of {top}", "").strip()
    return int(head) if head.isascii() and head.isdigit() and len(head) == 1 and int(head) in allowed else None


def choice_in(value: str | None, choices: Collection[str]) -> str | None:
    """Return the choice that a value is or begins with, the longest first; None where it is none."""
    if value is None:
        return None
    plain = " ".join(value.replace("_", " ").replace("-", " ").split())
    for choice in sorted(choices, key=len, reverse=True):
        rest = plain.removeprefix(choice)
        if rest != plain and not rest[:1].isalnum():
            return choice
    return None
