"""Answers out of the tables that reviewers filled in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from stairdata_review.blinding import CHOSEN, REJECTED, unblind
from stairdata_review.guidelines import guidelines_of
from stairdata_review.items import PAIR_KINDS, ReviewItem, item_ids, read_items
from stairdata_review.reviewers import hash_of
from stairdata_review.reviews import Source, build_reviews
from stairdata_review.tables.cells import TextRow, read_rows
from stairdata_review.tables.columns import choices_of, text_columns, texts_of
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.quarantine import QuarantineRow

RULES = {
    "unknown_item": "no item has that item_id",
    "no_reviewer": "nobody is named as the reviewer",
    "text_changed": "a text differs from the export, so it is unknown which side is A",
    "unknown_answer": "an answer is not one of the choices",
    "incomplete": "some questions are answered, others are not",
    "answered_twice": "the reviewer answered the item in another row",
}


def import_reviews(
    files: list[Path],
    artifact: Artifact,
    salt: str,
    root: Path,
    *,
    reviewer: str | None = None,
    version: str | None = None,
    max_quarantine: float = 0.05,
) -> Artifact:
    """Read answers out of tables; what breaks a rule goes to quarantine.

    Args:
        files: as `export_items` wrote them, answers filled in.
        artifact: what they are about.
        salt: of the reviewers' hashes.
        root: folder of the artifacts.
        reviewer: whose answers they are, where a row doesn't say so.
        version: of the reviews.
        max_quarantine: largest share of refused rows.

    Raises:
        InputError: a file that can't be read or lacks a column.
        ReviewError: not one answer.
        QuarantineError: too many rows were refused.
    """
    reader = _AnswerReader(artifact, salt, reviewer)
    for path in files:
        reader.read(path)
    versions = sorted({row["guideline_version"] for row in reader.rows})
    left_out = dict(sorted(Counter(reader.left_out).items()))
    source = Source(artifact.manifest.content_hash, "tables", ", ".join(versions), left_out)
    return build_reviews(
        reader.rows, artifact, source, root, version, refused=reader.refused, max_quarantine=max_quarantine
    )


class _AnswerReader:
    """Reads tables, and separates answers from rows without one and from rows that break a rule."""

    def __init__(self, artifact: Artifact, salt: str, reviewer: str | None) -> None:
        self.kind = artifact.kind
        self.rows: list[Row] = []
        self.refused: list[QuarantineRow] = []
        self.left_out: list[str] = []
        self._artifact = artifact
        self._salt = salt
        self._reviewer = reviewer
        self._ids = item_ids(artifact)
        self._seen: set[tuple[str, str]] = set()

    def read(self, path: Path) -> None:
        rows = read_rows(path)
        needed = ["item_id", *text_columns(self.kind), *choices_of(self.kind)]
        for number, row in enumerate(rows, start=1):
            if missing := [name for name in needed if name not in row]:
                raise InputError(
                    f"{path}, row {number} lacks the column {quote(missing[0])}; it is not an export of {self.kind}"
                )
        named = self._ids.filter(pl.col("item_id").is_in([row["item_id"].strip() for row in rows]))
        items = {item.item_id: item for item in read_items(self._artifact, named)}
        moment = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
        for number, row in enumerate(rows, start=1):
            self._take(path, number, row, items.get(row["item_id"].strip()), moment)

    def _take(self, path: Path, number: int, row: TextRow, item: ReviewItem | None, moment: datetime) -> None:
        answers = {name: row[name].strip() for name in choices_of(self.kind)}
        if not any(answers.values()):
            self.left_out.append("unanswered")
            return
        who = (row.get("reviewer") or self._reviewer or "").strip()
        sides = list(_sides(row, item, self.kind, path.suffix.lower())) if item else []
        known = {name: _choice(name, said, self.kind) for name, said in answers.items()}
        checks = {
            "unknown_item": item is None,
            "no_reviewer": not who,
            "text_changed": len(sides) != 1,
            "incomplete": not all(answers.values()),
            "unknown_answer": None in known.values(),
            "answered_twice": (row["item_id"].strip(), who) in self._seen,
        }
        broken = next((rule for rule, is_broken in checks.items() if is_broken), None)
        if broken or item is None:
            raw = json.dumps({name: row[name] for name in ("item_id", *answers)}, ensure_ascii=False)
            self.refused.append(QuarantineRow(path.name, number, broken or "unknown_item", raw))
            return
        self._seen.add((item.item_id, who))
        self.rows.append(self._review(row, item, sides[0], who, known) | {"submitted_at": moment})

    def _review(self, row: TextRow, item: ReviewItem, first: str | None, who: str, known: Json) -> Row:
        review: Row = {
            "item_kind": self.kind,
            "item_id": item.item_id,
            "reviewer": hash_of(self._salt, who),
            "comment": row.get("comment") or None,
            "guideline_version": row.get("guideline_version") or guidelines_of(self.kind, in_argilla=False)[0],
        }
        if first is None:
            return review | {"answers": json.dumps(known, sort_keys=True)}
        return review | {name: unblind(said, first) for name, said in known.items()} | {"shown_first": first}


def _sides(row: TextRow, item: ReviewItem, kind: str, suffix: str) -> Iterator[str | None]:
    """Yield what A may be, by its text; spreadsheets change line breaks, and nothing else may be changed."""
    for first in (CHOSEN, REJECTED) if kind in PAIR_KINDS else (None,):
        texts = texts_of(item, kind, first or CHOSEN, suffix)
        if all(_lines(row[name]) == _lines(text) for name, text in texts.items()):
            yield first


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _choice(name: str, said: str, kind: str) -> Any:
    """Return the answer that a cell means, whatever its case; None for none of them."""
    wanted = said.lower().replace(" ", "_").removesuffix(".0")
    found = next((choice for choice in choices_of(kind)[name] if choice.lower() == wanted), None)
    return int(found) if found and name == "helpfulness" else found
