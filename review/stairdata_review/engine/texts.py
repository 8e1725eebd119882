"""Text queries as SQL over the full-text index of `schema`; every word is a bound parameter."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Record
from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    column,
    exists,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    table,
    true,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from .text_query import All, Group, Not, Query, Words, has_words, parse

MOST_WORDS = 200
"""In one query; each is a search of its own."""
MOST_EXPANSIONS = 10
"""Words that one fuzzy word may stand for, the nearest first; Argilla's own limit."""

_TEXTS = table("stairdata_texts", column("id"), column("record_id"), column("dataset_id"), column("field"))
_INDEX = table("stairdata_index", column("rowid"), column("text"), column("rank"))
_VOCABULARY = table("stairdata_vocabulary", column("term"))
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts that put no blanks between words, so that the index has whole sentences as words."""


@dataclass(frozen=True)
class TextSearch:
    """What a text query means for one dataset."""

    condition: ColumnElement[bool]
    scores: Select[Any] | None
    """Rows of record id and score, the greater the better (BM25); None if nothing can be told apart."""


async def text_search(connection: AsyncConnection, dataset_id: UUID, text: str, field: str | None) -> TextSearch:
    """Read a query and return what it means.

    Raises:
        UnprocessableEntityError: it has more words than a search can take.
    """
    query = parse(text)
    if query is None:
        return TextSearch(false(), None)
    words = _leaves(query, positive=True)
    if len(words) > MOST_WORDS:
        raise UnprocessableEntityError(f"the text has {len(words)} words: search for at most {MOST_WORDS}")
    matches = {leaf: await _match(connection, leaf) for leaf, _ in words}
    where = _Where(dataset_id, field, matches)
    return TextSearch(where.condition(query), where.scores([leaf for leaf, positive in words if positive]))


@dataclass(frozen=True)
class _Where:
    dataset_id: UUID
    field: str | None
    matches: dict[Words, str | None]

    def condition(self, query: Query) -> ColumnElement[bool]:
        if isinstance(query, All):
            return true()
        if isinstance(query, Not):
            return not_(self.condition(query.part))
        if isinstance(query, Group):
            join = and_ if query.operation == "and" else or_
            return join(*(self.condition(part) for part in query.parts))
        return self._leaf(query)

    def _leaf(self, words: Words) -> ColumnElement[bool]:
        if _is_unspaced(words.text):
            return self._holds(words.text)
        match = self.matches[words]
        if match is None:
            return false()
        rows = select(_TEXTS.c.record_id).join_from(_INDEX, _TEXTS, _TEXTS.c.id == _INDEX.c.rowid)
        return Record.id.in_(rows.where(*self._here(), _matches(match)))

    def _here(self) -> list[ColumnElement[bool]]:
        here = [_TEXTS.c.dataset_id == self.dataset_id.hex]
        return here if self.field is None else [*here, _TEXTS.c.field == self.field]

    def _holds(self, text: str) -> ColumnElement[bool]:
        """Look for the letters themselves, in texts and in the messages of chats."""
        path = "$" if self.field is None else f'$."{self.field}"'
        each = func.json_tree(Record.fields, path).table_valued("key", "atom", "type", "path")
        is_text = and_(each.c.type == "text", or_(each.c.key != "role", each.c.path == "$"))
        return exists(select(1).select_from(each).where(is_text, each.c.atom.contains(text, autoescape=True)))

    def scores(self, leaves: list[Words]) -> Select[Any] | None:
        asked = [match for leaf in dict.fromkeys(leaves) if (match := self.matches[leaf])]
        if not asked:
            return None
        # a limit keeps SQLite from folding the inner query into the sum, where it can't rank
        found = [
            select(_TEXTS.c.record_id, (-_INDEX.c.rank).label("score"))
            .join_from(_INDEX, _TEXTS, _TEXTS.c.id == _INDEX.c.rowid)
            .where(*self._here(), _matches(match))
            .limit(-1)
            .subquery()
            for match in asked
        ]
        rows = union_all(*(select(each.c.record_id, each.c.score) for each in found)).subquery()
        return select(rows.c.record_id, func.sum(rows.c.score).label("score")).group_by(rows.c.record_id)


def _matches(match: str) -> ColumnElement[bool]:
    return literal_column("stairdata_index").op("MATCH")(bindparam(None, match))


async def _match(connection: AsyncConnection, words: Words) -> str | None:
    """Return a leaf in FTS5's language, where everything in quotes is text; None if it matches nothing."""
    if words.kind == "prefix":
        return f"{_quoted(words.text)} *"
    if words.kind == "phrase" and words.distance:
        singles = _singles(words.text)
        between = words.distance + max(0, len(singles) - 2)
        return f"NEAR({' '.join(map(_quoted, singles))}, {between})"
    if words.kind == "fuzzy":
        near = await _near_words(connection, words.text, words.distance)
        return " OR ".join(map(_quoted, near)) or None
    return _quoted(words.text)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""').replace("\0", " ") + '"'


def _singles(text: str) -> list[str]:
    """Split a text into the words that the index has."""
    return "".join(character if has_words(character) else " " for character in text).split()


async def _near_words(connection: AsyncConnection, text: str, distance: int) -> list[str]:
    wanted = text.lower()
    lengths = func.length(_VOCABULARY.c.term).between(len(wanted) - distance, len(wanted) + distance)
    terms = (await connection.execute(select(_VOCABULARY.c.term).where(lengths))).scalars().all()
    near = sorted((edits, term) for term in terms if (edits := _edits(wanted, term)) <= distance)
    return [term for _, term in near[:MOST_EXPANSIONS]]


def _edits(left: str, right: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(right) + 1))
    for count, letter in enumerate(left, 1):
        previous, row[0] = row[0], count
        for at, other in enumerate(right, 1):
            previous, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, previous + (letter != other))
    return row[-1]


def _is_unspaced(text: str) -> bool:
    return any(unicodedata.name(character, "").startswith(_UNSPACED) for character in text)


def _leaves(query: Query, *, positive: bool) -> list[tuple[Words, bool]]:
    if isinstance(query, Words):
        return [(query, positive)]
    if isinstance(query, Not):
        return _leaves(query.part, positive=not positive)
    if isinstance(query, Group):
        return [leaf for part in query.parts for leaf in _leaves(part, positive=positive)]
    return []
