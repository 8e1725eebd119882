"""Answers out of Argilla: every response of every reviewer, A and B turned back, spans counted in the artifact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stairdata_review.blinding import CHOSEN, REJECTED, other_side, unblind
from stairdata_review.items import PAIR_KINDS, ReviewItem, item_ids, read_items
from stairdata_review.reviewers import hash_of
from stairdata_review.reviews import Source, build_reviews, newest_of
from stairdata_review.rounds.client import Argilla
from stairdata_review.rounds.datasets import Round
from stairdata_review.rounds.settings import SIDE_FIELDS, show_text
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact, resolve, versions
from stairdata_schemas.errors import ArtifactError, ArtifactNotFoundError, ReviewError, quote


class ReviewerAnswer(NamedTuple):
    """One response of one reviewer to one record."""

    item_id: str
    user_id: str
    status: str
    values: Json
    """What was answered, by question."""
    submitted_at: datetime
    first: str | None
    """The side that was shown as A."""
    fields: Json
    """What was shown."""


class CollectedAnswers(NamedTuple):
    """Answers as rows of kind reviews."""

    rows: list[Row]
    left_out: dict[str, int]


def pull(
    argilla: Argilla, review_round: Round, reviewed: Artifact, salt: str, root: Path, version: str | None = None
) -> tuple[Artifact, bool]:
    """Bring the answers of a round into an artifact.

    The same answers give the artifact of the last pull. All records are read each time: what Argilla says of a
    dataset's last activity leaves out answers that programs write in bulk, and those of a reviewer who was deleted.

    Returns:
        The artifact, and whether it is a new one.

    Raises:
        ReviewError: not one submitted answer, or the server can't be reached: nothing is written then.
    """
    before = newest_of(root, review_round.dataset_id)
    collected = collect(read_answers(argilla, review_round), review_round, reviewed, salt)
    source = Source(
        review_round.dataset_id,
        review_round.name,
        review_round.about["guideline_version"],
        collected.left_out,
        review_round.last_activity_at,
    )
    artifact = build_reviews(collected.rows, reviewed, source, root, version)
    return artifact, before is None or before.folder != artifact.folder


def find_reviewed(review_round: Round, root: Path, named: Artifact | None = None) -> Artifact:
    """Open the artifact that a round is about.

    Raises:
        ReviewError: another one was named.
        ArtifactNotFoundError: it is not under the root.
    """
    about = review_round.about
    wanted = about["content_hash"]
    what = f"{quote(review_round.name)} is about {about['artifact']}"
    if named is not None:
        if named.manifest.content_hash != wanted:
            raise ReviewError(f"{what} with other content; name that one")
        return named
    kind = about["item_kind"]
    for version in reversed(versions(root, kind)):
        try:
            artifact = resolve(f"{kind}@{version}", root)
        except ArtifactError:
            continue
        if artifact.manifest.content_hash == wanted:
            return artifact
    raise ArtifactNotFoundError(f"{what}, which is not under {root}; name its --root, or the artifact itself")


def read_answers(argilla: Argilla, review_round: Round) -> Iterator[ReviewerAnswer]:
    """Yield every response to every record, of whatever status."""
    for page in argilla.records(review_round.dataset_id, responses=True):
        for record in page:
            for response in record.get("responses") or []:
                yield _answer(record, response)


def _answer(record: Json, response: Json) -> ReviewerAnswer:
    values = {name: each.get("value") for name, each in (response.get("values") or {}).items()}
    moment = datetime.fromisoformat(response["updated_at"])
    return ReviewerAnswer(
        record["external_id"] or "",
        str(response["user_id"]),
        response["status"],
        values,
        moment if moment.tzinfo else moment.replace(tzinfo=UTC),  # Argilla keeps UTC, and doesn't say so
        (record.get("metadata") or {}).get("a_is"),
        record["fields"],
    )


def collect(
    answers: Iterator[ReviewerAnswer], review_round: Round, reviewed: Artifact | None, salt: str
) -> CollectedAnswers:
    """Make rows of what was submitted; count what was not.

    Without the artifact, answers to items that it lacks count too, and rows have no marked parts.
    """
    kind: str = review_round.about["item_kind"]
    ids = item_ids(reviewed) if reviewed is not None else None
    known = set(ids["item_id"]) if ids is not None else None
    counts: Counter[str] = Counter()
    kept: list[ReviewerAnswer] = []
    for answer in answers:
        if answer.status != "submitted":
            counts[answer.status] += 1
        elif (known is not None and answer.item_id not in known) or (
            kind in PAIR_KINDS and answer.first not in {CHOSEN, REJECTED}
        ):
            counts["records_of_strangers"] += 1  # not pushed by us: what A is can't be told
        else:
            kept.append(answer)
    questions = [f"spans_{name}" for name in (*SIDE_FIELDS, "answer")]
    marked = {answer.item_id for answer in kept if any(answer.values.get(name) for name in questions)}
    items: dict[str, ReviewItem] = {}
    if reviewed is not None and ids is not None:
        wanted = ids.filter(pl.col("item_id").is_in(list(marked)))
        items = {item.item_id: item for item in read_items(reviewed, wanted)}
    rows = [_row(answer, review_round, kind, salt, items.get(answer.item_id), counts) for answer in kept]
    return CollectedAnswers(
        rows, {"draft": 0, "discarded": 0} | {name: count for name, count in sorted(counts.items()) if count}
    )


def _row(
    answer: ReviewerAnswer, review_round: Round, kind: str, salt: str, item: ReviewItem | None, counts: Counter[str]
) -> Row:
    spans = list(_spans(answer, item, counts)) if item else []
    row: Row = {
        "item_kind": kind,
        "item_id": answer.item_id,
        "reviewer": hash_of(salt, answer.user_id),
        "comment": answer.values.get("comment") or None,
        "guideline_version": review_round.about["guideline_version"],
        "submitted_at": answer.submitted_at,
    }
    if kind in PAIR_KINDS:
        assert answer.first is not None, "answers without it are left out"
        said = {name: answer.values.get(name) for name in ("verdict", "safe")}
        row |= {name: unblind(value, answer.first) if value else None for name, value in said.items()}
        return row | {"spans": spans or None, "shown_first": answer.first}
    other = {name: value for name, value in answer.values.items() if name not in {"comment", "spans_answer"}}
    marks = [[span["start"], span["end"]] for span in spans]
    return row | {"answers": json.dumps(other | ({"spans": marks} if marks else {}), sort_keys=True)}


def _spans(answer: ReviewerAnswer, item: ReviewItem, counts: Counter[str]) -> Iterator[Json]:
    """Yield marked parts, in code points of the whole `chosen`, `rejected` or `completion`, as (side, start, end)."""
    for name in (*SIDE_FIELDS, "answer"):
        marked = answer.values.get(f"spans_{name}") or []
        if not marked:
            continue
        side = "answer" if name == "answer" else {"a": answer.first, "b": other_side(answer.first or "")}[name]
        shown = show_text(item.texts[side or ""], item)
        found = [shown.span(each["start"], each["end"]) for each in marked] if shown.html == answer.fields[name] else []
        counts["spans_without_text"] += len(marked) - sum(each is not None for each in found)
        for each in found:
            if each is not None:
                yield {"side": side, "start": len(item.prefix) + each[0], "end": len(item.prefix) + each[1]}
