"""Text as a reviewer's browser may hold it, and the way back from there.

Argilla puts plain fields into innerHTML: what a model wrote would run. So nothing is pushed but characters that mean
themselves in HTML: `&`, `<` and `>` become entities, and so do characters beyond U+FFFF, because the page counts UTF-16
units where the server counts code points, and refuses a span that seems to end behind the text. Control and
bidirectional characters are shown as escapes. The tags of the step grammar are left out where the text keeps the
grammar: a reviewer judges content, and the title stands on a line of its own.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate

from stairdata_schemas import grammar
from stairdata_schemas.errors import visible

CHAT_LIMIT = 20_000
"""Characters of a chat message that Argilla takes, entities counted as they are written."""
TEXT_LIMIT = 50_000
"""The same for text fields: a browser cuts text nodes at 65,536 units, and spans are counted inside one node."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_KEPT = frozenset("\n\t\u200d")  # the zero-width joiner holds emoji together
_TAGS = re.compile(
    r"<\|Reasoning_step\|>\nTitle: |\n<\|/Reasoning_step\|>|<\|Output\|>\n|\n<\|/Output\|>"  # `grammar` has the words
)


@dataclass(frozen=True, slots=True)
class DisplayPiece:
    """Some characters of a text, as they are pushed."""

    html: str
    units: int
    """UTF-16 units that a browser shows for them."""
    start: int
    """First code point of the text that it stands for."""
    end: int
    """Code point after the last."""


@dataclass(frozen=True, slots=True)
class DisplayText:
    """A text as it is pushed."""

    pieces: tuple[DisplayPiece, ...]
    left_out: int = 0
    """Characters that a limit cut off."""

    @property
    def html(self) -> str:
        """The pushed text, free of markup."""
        return "".join(piece.html for piece in self.pieces)

    def span(self, start: int, end: int) -> tuple[int, int] | None:
        """Map a span that a browser counted back to the text.

        Args:
            start: first UTF-16 unit of what the page shows.
            end: unit after the last.

        Returns:
            The code points [start, end) of the text, or None where the span holds nothing of it.
        """
        ends = list(accumulate(piece.units for piece in self.pieces))
        first, last = bisect_right(ends, start), bisect_left(ends, end)
        touched = [piece for piece in self.pieces[first : last + 1] if piece.start < piece.end]
        return (touched[0].start, touched[-1].end) if start < end and touched else None


def show(text: str, limit: int, hidden: list[tuple[int, int]] | None = None) -> DisplayText:
    """Make a text fit for a browser.

    Args:
        text: what a person or a model wrote.
        limit: characters that may be pushed; a longer text is cut, and says so.
        hidden: code points [start, end) that are not shown.
    """
    pieces = _pieces(text, hidden or [])
    total = sum(len(piece.html) for piece in pieces)
    if total <= limit:
        return DisplayText(tuple(pieces))
    room = limit - len(_cut_mark(len(text)).html)
    while pieces and total > room:
        total -= len(pieces.pop().html)
    left_out = len(text) - (pieces[-1].end if pieces else 0)
    return DisplayText((*pieces, _cut_mark(left_out)), left_out)


def show_steps(text: str, limit: int, *, from_start: bool) -> DisplayText:
    """Make steps of an answer fit for a browser; the grammar's tags are hidden where the text keeps the grammar.

    Args:
        text: steps joined.
        limit: characters that may be pushed.
        from_start: the text begins where the answer begins.
    """
    if not _is_grammatical(text, from_start=from_start):
        return show(text, limit)
    blank = len(text) - len(text.lstrip())
    return show(text, limit, [(0, blank), *((match.start(), match.end()) for match in _TAGS.finditer(text))])


def _is_grammatical(text: str, *, from_start: bool) -> bool:
    steps = grammar.split_steps(text)
    first = [from_start, *[False] * len(steps)]
    return bool(steps) and all(grammar.is_block(step, is_first=first[place]) for place, step in enumerate(steps))


def _pieces(text: str, hidden: list[tuple[int, int]]) -> list[DisplayPiece]:
    pieces: list[DisplayPiece] = []
    position = 0
    for start, end in [*hidden, (len(text), len(text))]:
        while position < start:
            piece = _piece(text, position)
            pieces.append(piece)
            position = piece.end
        position = max(position, end)
    return pieces


def _piece(text: str, position: int) -> DisplayPiece:
    character = text[position]
    if character == "\r":  # HTML knows one kind of line break
        return DisplayPiece("\n", 1, position, position + (2 if text.startswith("\r\n", position) else 1))
    if character in _ENTITIES:
        return DisplayPiece(_ENTITIES[character], 1, position, position + 1)
    if character not in _KEPT and _is_unseen(character):
        escape = visible(character)
        return DisplayPiece(escape, len(escape), position, position + 1)
    if character > "\uffff":
        return DisplayPiece(f"&#{ord(character)};", 2, position, position + 1)
    return DisplayPiece(character, 1, position, position + 1)


def _is_unseen(character: str) -> bool:
    category = unicodedata.category(character)
    return category.startswith("C") or category in {"Zl", "Zp"}


def _cut_mark(left_out: int) -> DisplayPiece:
    """Say how much is missing; stands for nothing of the text, so that no span reaches into it."""
    mark = f"\n[… {left_out:,} more characters; the whole text is in the dataset]"
    return DisplayPiece(mark, len(mark), 0, 0)
