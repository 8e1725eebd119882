"""How much a template may do and make, and how large a value is as text."""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, Iterable, KeysView, ValuesView
from typing import Any

OUTPUT = 1_000_000
"""Characters of one text that a template makes, and of what it puts into one list, apart from what it was given."""
OUTPUT_GROWTH = 16
"""How many times as large as what a template was given such a text may be, on top of `OUTPUT`."""
MADE = 8
"""Characters of all texts that one rendering makes, as a multiple of its largest."""
ITEMS = 100_000
"""Items of one list, inner lists included."""
STEPS = 1_000_000
"""Steps of one rendering: parts of loops and macros that are executed, and items that filters see."""
STEPS_GROWTH = 64
"""Steps on top of that, for each character that a template was given."""
SECONDS = 5.0
"""CPU time of one rendering. The other limits end it sooner, unless each step is a slow one."""
DIGITS = 4096
"""Bits of a whole number."""
SOURCE = 131_072
"""Characters of a template; those of the largest models have about 30,000."""

_STEPS_BETWEEN_LOOKS = 4096
_CONTAINERS = (list, tuple, dict, KeysView, ValuesView, ItemsView)
_DIGIT_RUNS = re.compile(r"(?<=[%)#\-+ .0])[1-9][0-9]*")


class TemplateLimitError(Exception):
    """A template does more than it may; the message says what."""


class Allowance:
    """What is left of the limits of one rendering.

    Args:
        given: characters that the template was given.
    """

    __slots__ = ("_most_steps", "_next_look", "_until", "largest", "made", "steps")

    def __init__(self, given: int) -> None:
        self.largest = OUTPUT + OUTPUT_GROWTH * given
        self.made = self.largest * MADE
        self.steps = self._most_steps = STEPS + STEPS_GROWTH * given
        self._next_look = self.steps - _STEPS_BETWEEN_LOOKS
        self._until: float | None = None

    def step(self, count: int) -> bool:
        """Take steps off; True, so that it can stand in a condition."""
        self.steps -= count
        if self.steps < self._next_look:
            self._look()
        return True

    def _look(self) -> None:
        if self.steps < 0:
            raise TemplateLimitError(f"it takes more than {self._most_steps:,} steps")
        self._next_look = self.steps - _STEPS_BETWEEN_LOOKS
        # most renderings end before the first look, so the clock starts there
        now = time.thread_time()
        if self._until is None:
            self._until = now + SECONDS
        elif now > self._until:
            raise TemplateLimitError(f"it takes more than {SECONDS:.0f} seconds")

    def make(self, size: int) -> None:
        """Take a text of this many characters off, before it is made."""
        self.made -= size
        if size > self.largest or self.made < 0:
            raise TemplateLimitError(f"it makes a text of more than {self.largest:,} characters")

    def hold(self, value: Any) -> int:
        """Check a value that may hold others, and return its size as text.

        A list that holds the same list many times is small in memory, and without end as text.
        """
        size, items, waiting = 0, 0, [value]
        most_items = ITEMS + self.largest - OUTPUT
        while waiting:
            found = waiting.pop()
            items += 1
            if isinstance(found, str):
                size += len(found)
            elif isinstance(found, _CONTAINERS):
                if len(found) + len(waiting) + items > most_items:
                    raise TemplateLimitError(f"it makes a list of more than {most_items:,} items")
                waiting.extend(_parts(found))
            if size > self.largest:
                raise TemplateLimitError(f"it makes a list of more than {self.largest:,} characters")
        self.step(items)
        return size + items

    def number(self, bits: int) -> None:
        """Check how many bits a whole number will have."""
        if bits > DIGITS:
            raise TemplateLimitError(f"it makes a whole number of more than {DIGITS:,} bits")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    else:
        yield from value


def depth(value: Any) -> int:
    """Return how many lists a value holds inside each other."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        found, level = waiting.pop()
        deepest = max(deepest, level)
        if isinstance(found, _CONTAINERS):
            waiting.extend((part, level + 1) for part in _parts(found))
    return deepest


def printf_size(text: str, values: Any, allowance: Allowance) -> int:
    """Return the most characters that `text % values` can have: every number in the text may be a width."""
    widths = sum(map(int, _DIGIT_RUNS.findall(text)))
    size = allowance.hold(values)
    if "*" in text:
        numbers = values if isinstance(values, tuple) else (values,)
        widths += text.count("*") * max((abs(number) for number in numbers if isinstance(number, int)), default=0)
    return len(text) + widths + text.count("%") * (size + 32)


def widths_in(spec: str) -> int:
    """Return the sum of the numbers in a format specification, such as 12 for `>10.2f`."""
    return sum(map(int, re.findall("[0-9]+", spec)))


def replaced_size(text: str, old: str, new: str, count: int | None) -> int:
    """Return the number of characters after a replacement."""
    found = text.count(old)
    if count is not None and count >= 0:
        found = min(found, count)
    return len(text) + found * max(len(new) - len(old), 0)
