"""Reviewers are let in once and whole, wherever the invitation is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from stairdata_review.rounds import client
from stairdata_review.rounds.client import Argilla, ServerAccess
from stairdata_review.rounds.invitations import Invitation, invite
from stairdata_review.server.running_server import RunningServer
from stairdata_schemas.errors import ReviewError

WORKSPACE = "invitations"


class GoneAfter(httpx.BaseTransport):
    """Passes so many requests on to a real server; then it is gone."""

    def __init__(self, inner: httpx.BaseTransport, requests: int) -> None:
        self.inner = inner
        self.left = requests

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.left -= 1
        if self.left < 0:
            raise httpx.ReadError("the server is gone")
        return self.inner.handle_request(request)


@pytest.fixture
def owner(argilla_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Argilla]:
    monkeypatch.setattr(client, "WAITS", ())
    with Argilla(ServerAccess(argilla_server.url, argilla_server.credentials().api_key)) as argilla:
        yield argilla


def signs_in(invitation: Invitation) -> bool:
    form = {"username": invitation.username, "password": invitation.password}
    return httpx.post(f"{invitation.url}/api/v1/token", data=form, trust_env=False).is_success


def user_of(owner: Argilla, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [user for user in owner.get("/users")["items"] if user["username"] == name]
    return found[0]


@pytest.mark.slow
def test_an_invitation_that_was_cut_off_is_finished_by_the_next_one(
    owner: Argilla, argilla_server: RunningServer
) -> None:
    invite(owner, "before", WORKSPACE)
    cut = 0
    while True:
        name = f"cut-{cut}"
        with Argilla(ServerAccess(owner.url, argilla_server.credentials().api_key)) as argilla:
            argilla._http._transport = GoneAfter(argilla._http._transport, cut)
            try:
                invitation = invite(argilla, name, WORKSPACE)
            except ReviewError:
                invitation = invite(owner, name, WORKSPACE)
                is_whole = False
            else:
                is_whole = True
        assert signs_in(invitation)
        assert user_of(owner, name)["last_name"] is None
        assert invite(owner, name, WORKSPACE).password is None, "who has a password keeps it"
        if is_whole:
            break
        cut += 1
    assert cut == 6, "every request was the first that failed"
