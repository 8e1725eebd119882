"""The language of Argilla's search box, which is Elasticsearch's `simple_query_string` with AND between words.

`a b` both, `a | b` either, `-a` not, `"a b"` side by side, `a*` words that begin so, `( )` groups, `a~1` words one or
two letters away, `"a b"~3` with up to three words between, a backslash takes a sign for itself. It never fails: what
can't be read is taken as text. Operators have no precedence; they bind from left to right.

Source: Lucene's SimpleQueryParser, whose steps are followed here.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

Kind = Literal["words", "prefix", "fuzzy", "phrase"]
Operation = Literal["and", "or"]
MOST_EDITS = 2
DEEPEST = 50
"""Groups within groups; signs further down count for nothing."""
_ENDS = frozenset('"|+()')


@dataclass(frozen=True)
class Words:
    """A word or phrase to find in one field."""

    text: str
    kind: Kind = "words"
    distance: int = 0
    """Letters that may differ (fuzzy), or words that may stand between (phrase)."""


@dataclass(frozen=True)
class All:
    """Matches each record: the query `*`."""


@dataclass(frozen=True)
class Not:
    """Matches what the part doesn't."""

    part: Query


@dataclass(frozen=True)
class Group:
    """Parts joined by one operation."""

    operation: Operation
    parts: tuple[Query, ...]


Query = Words | All | Not | Group


def parse(text: str) -> Query | None:
    """Read a query; None if it holds nothing to look for, which matches nothing."""
    return All() if text.strip() == "*" else _Parser(text).parse()


def has_words(text: str) -> bool:
    """Tell whether a text holds a character that words are made of."""
    return any(unicodedata.category(character)[0] in "LN" or character.isalnum() for character in text)


@dataclass
class _Parser:
    text: str
    depth: int = 0
    at: int = 0
    top: Query | None = None
    negations: int = 0
    current: Operation | None = None
    previous: Operation | None = None

    def parse(self) -> Query | None:
        while self.at < len(self.text):
            sign = self.text[self.at]
            if sign == "-":
                self.negations += 1
                self.at += 1
                continue
            self._step(sign)
            self.negations = 0  # not even a blank may stand between the sign and what it negates
        return self.top

    def _step(self, sign: str) -> None:
        if sign == "(":
            self._group()
        elif sign == '"':
            self._phrase()
        elif sign in "+|":
            if self.current is None and self.top is not None:
                self.current = "and" if sign == "+" else "or"
            self.at += 1
        elif sign == ")" or sign.isspace():
            self.at += 1
        else:
            self._token()

    def _group(self) -> None:
        start = self.at + 1
        end = self._closing(start) if self.depth < DEEPEST else None
        if end is None:
            self.at = start  # never closed: the sign counts for nothing
            return
        self.at = end + 1
        self._add(_Parser(self.text[start:end], self.depth + 1).parse())

    def _closing(self, start: int) -> int | None:
        depth, at = 1, start
        while at < len(self.text):
            sign = self.text[at]
            if sign == "\\":
                at += 1
            else:
                depth += {"(": 1, ")": -1}.get(sign, 0)
            if depth == 0:
                return at
            at += 1
        return None

    def _phrase(self) -> None:
        start = at = self.at + 1
        letters = []
        while at < len(self.text) and self.text[at] != '"':
            at += self.text[at] == "\\"
            letters.append(self.text[at : at + 1])
            at += 1
        if at >= len(self.text):
            self.at = start
            return
        self.at = at + 1
        slop = self._number() if self.text[self.at : self.at + 1] == "~" else 0
        self._add(_words("".join(letters), "phrase", slop))

    def _token(self) -> None:
        letters: list[str] = []
        kind: Kind = "words"
        while self.at < len(self.text):
            sign = self.text[self.at]
            if sign == "\\":
                letters.append(self.text[self.at + 1 : self.at + 2])
                kind = "words"
                self.at += 2
                continue
            if sign in _ENDS or sign.isspace():
                break
            if sign == "~" and letters:
                self._fuzzy("".join(letters))
                return
            kind = "prefix" if sign == "*" and letters else "words"
            letters.append(sign)
            self.at += 1
        text = "".join(letters)
        self._add(_words(text[:-1] if kind == "prefix" else text, kind))

    def _fuzzy(self, text: str) -> None:
        edits = min(self._number(), MOST_EDITS)
        self._add(_words(text, "fuzzy" if edits else "words", edits))

    def _number(self) -> int:
        """Read what follows a tilde, up to the end of the token; no number counts as 0, as in Lucene."""
        start = self.at + 1
        self.at = start
        while self.at < len(self.text) and self.text[self.at] not in _ENDS and not self.text[self.at].isspace():
            self.at += 1
        digits = self.text[start : self.at]
        return min(int(digits), 1000) if digits.isascii() and digits.isdigit() else 0

    def _add(self, part: Query | None) -> None:
        operation: Operation = self.current or "and"
        self.current = None
        if part is None:
            return
        branch = Not(part) if self.negations % 2 else part
        if self.top is None:
            self.top = branch
            return
        if self.previous == operation and isinstance(self.top, Group):
            self.top = Group(operation, (*self.top.parts, branch))
        else:
            self.top = Group(operation, (self.top, branch))
        self.previous = operation


def _words(text: str, kind: Kind, distance: int = 0) -> Words | None:
    return Words(text, kind, distance) if has_words(text) else None
