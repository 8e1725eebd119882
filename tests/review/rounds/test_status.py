"""How far a round is: what the server knows is said without the artifact."""

from __future__ import annotations

from typing import Any

import httpx

from stairdata_review.rounds.client import Argilla, ServerAccess
from stairdata_review.rounds.datasets import Round
from stairdata_review.rounds.status import status


def response(user: str, state: str, verdict: str, minute: int) -> dict[str, Any]:
    values = {"verdict": {"value": verdict}, "safe": {"value": "both"}}
    moment = f"2026-01-01T12:{minute:02d}:00"
    return {"user_id": user, "status": state, "values": values, "updated_at": moment}


RECORDS = [
    {
        "id": f"r{number}",
        "external_id": f"item{number}",
        "fields": {},
        "metadata": {"a_is": "chosen"},
        "responses": [response("u1", "submitted", "A", number), *([response("u2", "draft", "B", 9)] if number else [])],
    }
    for number in range(3)
]
ANSWERS: dict[str, Any] = {
    "/api/v1/datasets/d/progress": {"total": 5, "completed": 3, "pending": 2},
    "/api/v1/datasets/d/records": {"total": 3, "items": RECORDS},
    "/api/v1/me": {"id": "u1", "username": "ann"},
    "/api/v1/workspaces/w/users": {"items": [{"id": "u2", "username": "bob"}]},
}


def test_the_state_of_a_round_without_its_artifact() -> None:
    made = Argilla(ServerAccess("http://127.0.0.1:1", "key"))
    made._http._transport = httpx.MockTransport(lambda request: httpx.Response(200, json=ANSWERS[request.url.path]))
    about = {"item_kind": "preference_pairs", "artifact": "preference_pairs@1.0.0", "guideline_version": "pairs/1"}
    with made as argilla:
        figures = status(argilla, Round("d", "pairs", "w", 1, "", about), None)
    assert figures["progress"] == {"total": 5, "completed": 3, "pending": 2}
    assert figures["answers"] == {"submitted": 3, "draft": 2, "discarded": 0}
    assert {name: who["submitted"] for name, who in figures["reviewers"].items()} == {"ann": 3, "bob": 0}
    assert figures["pace"]["answers_needed"] == 2
    assert figures["agreement"] == {}
