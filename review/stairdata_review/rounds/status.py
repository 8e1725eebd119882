"""How a round goes: progress, reviewers, pace, agreement so far."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import polars as pl

from stairdata_review.agreement import agreement, seconds_an_answer
from stairdata_review.reviewers import hash_of
from stairdata_review.reviews import facts_of
from stairdata_review.rounds.client import Argilla
from stairdata_review.rounds.datasets import Round
from stairdata_review.rounds.pull import ReviewerAnswer, collect, read_answers
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.kinds import polars_schema

SALT = ""
"""Nothing leaves this module but names, so hashes need no secret here."""


def status(argilla: Argilla, review_round: Round, reviewed: Artifact | None) -> Json:
    """Say how a round goes.

    Args:
        argilla: a connection.
        review_round: the round.
        reviewed: what was pushed; without it all is told but the agreement, which needs values, tasks and depths.

    Returns:
        dataset, artifact, min_submitted; progress (total, completed and pending items); answers by status; reviewers,
        each with answers by status and the time of the last; pace (median seconds an answer takes, answers in the last
        24 hours, answers still needed, hours of work they take at that pace); agreement as
        `stairdata_review.agreement.agreement` gives it, reviewers by their names.
    """
    progress = argilla.get(f"/datasets/{review_round.dataset_id}/progress")
    names = _names(argilla, review_round)
    answers = list(read_answers(argilla, review_round))
    collected = collect(iter(answers), review_round, reviewed, SALT)
    rows = [{name: row.get(name) for name in polars_schema("reviews")} for row in collected.rows]
    frame = pl.DataFrame(rows, schema=polars_schema("reviews"))
    figures = agreement(frame, facts_of(reviewed)) if reviewed is not None and len(frame) else {}
    if figures:
        figures["by_reviewer"] = _by_name(figures["by_reviewer"], answers, names)
    return {
        "dataset": review_round.name,
        "artifact": review_round.about["artifact"],
        "min_submitted": review_round.min_submitted,
        "progress": {name: progress[name] for name in ("total", "completed", "pending")},
        "answers": {"submitted": len(frame), **collected.left_out},
        "reviewers": {names.get(user, user): _one(part) for user, part in _by_user(answers)},
        "pace": _pace(frame, answers, review_round, progress["total"]),
        "agreement": figures,
    }


def _names(argilla: Argilla, review_round: Round) -> dict[str, str]:
    """Return user names by id; whoever is no member of the workspace goes by the id."""
    me = argilla.get("/me")
    members = argilla.get(f"/workspaces/{review_round.workspace_id}/users")["items"]
    return {str(each["id"]): each["username"] for each in [me, *members]}


def _by_name(by_hash: Json, answers: list[ReviewerAnswer], names: dict[str, str]) -> Json:
    hashes = {hash_of(SALT, answer.user_id): names.get(answer.user_id, answer.user_id) for answer in answers}
    return {hashes[key]: value for key, value in by_hash.items()}


def _by_user(answers: list[ReviewerAnswer]) -> Iterator[tuple[str, list[ReviewerAnswer]]]:
    for user in sorted({answer.user_id for answer in answers}):
        yield user, [answer for answer in answers if answer.user_id == user]


def _one(answers: list[ReviewerAnswer]) -> Json:
    statuses = [answer.status for answer in answers]
    counts = {name: statuses.count(name) for name in ("submitted", "draft", "discarded")}
    return {**counts, "last": max(answer.submitted_at for answer in answers).isoformat()}


def _pace(frame: pl.DataFrame, answers: list[ReviewerAnswer], review_round: Round, total: int) -> Json:
    counts: dict[str, int] = dict(frame["item_id"].value_counts().iter_rows())
    needed = total * review_round.min_submitted - sum(
        min(count, review_round.min_submitted) for count in counts.values()
    )
    seconds = seconds_an_answer(frame)
    now = datetime.now(UTC)
    recent = [each for each in answers if each.status == "submitted" and (now - each.submitted_at).days < 1]
    return {
        "seconds_an_answer": seconds,
        "answers_last_24_hours": len(recent),
        "answers_needed": needed,
        "hours_of_work": None if seconds is None else round(seconds * needed / 3600, 2),
    }
