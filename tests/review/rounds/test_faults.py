"""Push and pull, interrupted at every request: the same command again, and nothing is lost and nothing is twice."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stairdata_review.rounds import client, datasets
from stairdata_review.rounds import push as push_module
from stairdata_review.rounds.client import Argilla, ServerAccess
from stairdata_review.rounds.datasets import Round, find_round
from stairdata_review.rounds.pull import pull
from stairdata_review.rounds.push import PushCounts, RoundOptions, push
from stairdata_review.server.background import start_server, stop_server
from stairdata_review.server.running_server import RunningServer
from stairdata_schemas.artifacts import Artifact, validate_artifact, versions
from stairdata_schemas.errors import ReviewError
from tests.review.samples import pairs_of

pytestmark = pytest.mark.slow
WORKSPACE = "faults"
ITEMS = 8


class Flaky(httpx.BaseTransport):
    """Passes requests on to a real server until one fails; that one and all after it, or it alone.

    unsent: the request never arrives. unheard: it arrives, and its answer is lost. refused: a proxy answers 503.
    """

    def __init__(self, inner: httpx.BaseTransport, at: int, mode: str, *, once: bool) -> None:
        self.inner = inner
        self.at = at
        self.mode = mode
        self.once = once
        self.count = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        place, self.count = self.count, self.count + 1
        if place < self.at or (self.once and place > self.at):
            return self.inner.handle_request(request)
        if self.mode == "unheard" and place == self.at:
            self.inner.handle_request(request).close()
        if self.mode == "refused":
            return httpx.Response(503, text="come back later")
        raise httpx.ReadError("the server is gone")


@pytest.fixture(autouse=True)
def _no_waits_and_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(client, "PAGE", 3)
    monkeypatch.setattr(push_module, "BATCH_RECORDS", 3)
    monkeypatch.setattr(datasets, "MAKING_SECONDS", 0.0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return pairs_of(tmp_path_factory.mktemp("artifacts"), ITEMS // 2)


@pytest.fixture
def owner(argilla_server: RunningServer) -> Iterator[Argilla]:
    with Argilla(ServerAccess(argilla_server.url, argilla_server.credentials().api_key)) as argilla:
        yield argilla


def flaky(owner: Argilla, at: int, mode: str, *, once: bool = False) -> tuple[Argilla, Flaky]:
    argilla = Argilla(ServerAccess(owner.url, str(owner._http.headers["X-Argilla-Api-Key"])))
    transport = Flaky(argilla._http._transport, at, mode, once=once)
    argilla._http._transport = transport
    return argilla, transport


def push_to(argilla: Argilla, pairs: Artifact, name: str) -> PushCounts:
    options = RoundOptions(pairs.folder.parent.parent, workspace=WORKSPACE, dataset=name)
    return push(argilla, pairs, options, lambda *_: None)


def is_whole(owner: Argilla, pairs: Artifact, name: str) -> Round:
    """Check a dataset: its layout, and each pair once."""
    place = find_round(owner, WORKSPACE, name, None)
    counts = {part: owner.get(f"/datasets/{place.dataset_id}/{part}")["items"] for part in ("fields", "questions")}
    assert {part: len(items) for part, items in counts.items()} == {"fields": 4, "questions": 5}
    assert len(owner.get(f"/me/datasets/{place.dataset_id}/metadata-properties")["items"]) == 7
    ids = [record["external_id"] for page in owner.records(place.dataset_id) for record in page]
    assert sorted(ids) == sorted(pairs.scan().select("pair_id").collect()["pair_id"])
    return place


@pytest.mark.parametrize("mode", ["unsent", "unheard", "refused"])
def test_a_push_that_is_cut_off_goes_on(mode: str, owner: Argilla, pairs: Artifact) -> None:
    push_to(owner, pairs, f"{mode}-whole")
    at = 0
    while True:
        name = f"{mode}-{at}"
        argilla, transport = flaky(owner, at, mode)
        with argilla:
            try:
                push_to(argilla, pairs, name)
            except ReviewError as error:
                said = str(error)
            else:
                break
        assert "the same command continues" in said
        again = push_to(owner, pairs, name)
        assert again.added + again.there_before == ITEMS
        is_whole(owner, pairs, name)
        at += 1
    assert transport.count == at > 20, "every request was cut off once"


class Waiting(httpx.BaseTransport):
    """Stands still at a request until it may go on."""

    def __init__(self, inner: httpx.BaseTransport, at: int) -> None:
        self.inner = inner
        self.left = at
        self.is_there, self.may_go_on = threading.Event(), threading.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.left -= 1
        if self.left == 0:
            self.is_there.set()
            assert self.may_go_on.wait(60)
        return self.inner.handle_request(request)


def test_two_pushes_that_begin_a_round_at_the_same_time(
    owner: Argilla, pairs: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one finds the dataset half made, and lets the first one finish."""
    push_to(owner, pairs, "before")  # so that the workspace is there
    slow, _ = flaky(owner, 10**6, "unsent")
    waiting = slow._http._transport = Waiting(slow._http._transport, 8)
    pushed: list[PushCounts] = []
    first = threading.Thread(target=lambda: pushed.append(push_to(slow, pairs, "both")))
    first.start()
    assert waiting.is_there.wait(60)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        waiting.may_go_on.set()
        first.join()

    monkeypatch.setattr(datasets, "MAKING_SECONDS", 3600.0)
    monkeypatch.setattr(datasets, "sleep", sleep)
    again = push_to(owner, pairs, "both")
    assert 0 < waits[0] <= 3600
    assert (pushed[0].added, again.added, again.there_before) == (ITEMS, 0, ITEMS)
    is_whole(owner, pairs, "both")


@pytest.mark.parametrize("mode", ["unsent", "unheard", "refused"])
def test_a_server_that_stumbles_once_is_asked_again(mode: str, owner: Argilla, pairs: Artifact) -> None:
    """From the dataset's publication on; what makes something new is not sent twice."""
    push_to(owner, pairs, f"{mode}-stumble")
    argilla, transport = flaky(owner, 10**6, mode)
    push_to(argilla, pairs, f"{mode}-count")
    for at in range(transport.count - 5, transport.count):
        name = f"{mode}-stumble-{at}"
        argilla, _ = flaky(owner, at, mode, once=True)
        with argilla:
            assert push_to(argilla, pairs, name).added == ITEMS
        is_whole(owner, pairs, name)


def answers(owner: Argilla, place: Round) -> None:
    for page in owner.records(place.dataset_id):
        for record in page:
            values = {"verdict": {"value": "A"}, "safe": {"value": "both"}}
            owner.post(f"/records/{record['id']}/responses", {"values": values, "status": "submitted"})


@pytest.mark.parametrize("mode", ["unsent", "refused"])
def test_a_pull_that_is_cut_off_leaves_nothing_half_done(
    mode: str, owner: Argilla, pairs: Artifact, tmp_path: Path
) -> None:
    push_to(owner, pairs, f"{mode}-pull")
    place = is_whole(owner, pairs, f"{mode}-pull")
    answers(owner, place)
    place = find_round(owner, WORKSPACE, place.name, None)
    for at in range(3):
        argilla, _ = flaky(owner, at, mode)
        with argilla, pytest.raises(ReviewError, match="the same command continues"):
            pull(argilla, place, pairs, "salt", tmp_path)
        assert versions(tmp_path, "reviews") == []
    reviews, is_new = pull(owner, place, pairs, "salt", tmp_path)
    assert is_new
    assert validate_artifact(reviews) == []
    assert reviews.manifest.rows == ITEMS


def test_a_second_pull_is_the_first_until_somebody_answers(owner: Argilla, pairs: Artifact, tmp_path: Path) -> None:
    push_to(owner, pairs, "again")
    answers(owner, is_whole(owner, pairs, "again"))
    place = find_round(owner, WORKSPACE, "again", None)
    first, _ = pull(owner, place, pairs, "salt", tmp_path)
    assert pull(owner, place, pairs, "salt", tmp_path) == (first, False)
    record = next(owner.records(place.dataset_id, responses=True))[0]
    change: dict[str, Any] = {"values": {"verdict": {"value": "tie"}, "safe": {"value": "A"}}, "status": "submitted"}
    owner.put(f"/responses/{record['responses'][0]['id']}", change)
    second, is_new = pull(owner, find_round(owner, WORKSPACE, "again", None), pairs, "salt", tmp_path)
    assert is_new
    assert second.reference == "reviews@1.1.0"
    since = second.manifest.details["since"]
    assert since == {"reviews": "reviews@1.0.0", "new": 0, "changed": 1, "withdrawn": 0}
    owner.delete(f"/responses/{record['responses'][0]['id']}")
    third, _ = pull(owner, find_round(owner, WORKSPACE, "again", None), pairs, "salt", tmp_path)
    assert third.manifest.details["since"] == {"reviews": "reviews@1.1.0", "new": 0, "changed": 0, "withdrawn": 1}


def test_a_server_killed_in_the_middle_of_a_push(pairs: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    running = start_server(folder, port=0)
    options = RoundOptions(pairs.folder.parent.parent, workspace=WORKSPACE)

    def kill(what: str, done: int, total: int) -> None:
        os.kill(running.pid, signal.SIGKILL)
        with httpx.Client(trust_env=False) as asking:  # its processes end when they see that their parent is gone
            while True:
                try:
                    asking.get(f"{running.url}/api/v1/version")
                except httpx.ConnectError:
                    break
                except httpx.TransportError:
                    continue  # it is slow, or just ending

    try:
        with (
            Argilla(ServerAccess(running.url, running.credentials().api_key)) as argilla,
            pytest.raises(ReviewError, match="doesn't answer"),
        ):
            push(argilla, pairs, options, kill)
        running = start_server(folder, port=0)
        with Argilla(ServerAccess(running.url, running.credentials().api_key)) as argilla:
            pushed = push(argilla, pairs, options, lambda *_: None)
            assert (pushed.added, pushed.there_before) == (5, 3)
            is_whole(argilla, pairs, pushed.dataset)
    finally:
        stop_server(folder)
