"""The server's life: found again, stopped, killed; and what ten reviewers at once leave in it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from stairdata_review.server.background import start_server, stop_server
from stairdata_review.server.running_server import RunningServer, find_server
from stairdata_schemas.errors import ReviewError
from stairdata_schemas.processes import descendants, free_port
from tests.review.api import Api, add_records, labels, make_dataset, make_reviewer, make_workspace, owner_of

pytestmark = pytest.mark.slow

PATIENCE = 300
REVIEWERS = 10
RECORDS = 30
MIN_SUBMITTED = 10
FIELDS = {"text": {"type": "text", "use_markdown": False}}
QUESTIONS = {"verdict": {"type": "label_selection", "options": labels("A", "B")}}
VALUES = {"verdict": {"value": "A"}}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with blanks and signs in its name; the server in it is ended with the test."""
    place = tmp_path / "a server's folder?&%41"
    yield place
    stop_server(place)


class Round:
    """A dataset with records, and reviewers who may answer them."""

    def __init__(self, running: RunningServer, name: str, records: int, min_submitted: int) -> None:
        self.owner = owner_of(running)
        workspace = make_workspace(self.owner, name)
        self.users = [make_reviewer(self.owner, f"{name}-{number}", workspace) for number in range(REVIEWERS)]
        self.dataset_id = make_dataset(self.owner, workspace, name, FIELDS, QUESTIONS, min_submitted=min_submitted)
        items = [{"fields": {"text": f"text {number}"}} for number in range(records)]
        self.record_ids = [each["id"] for each in add_records(self.owner, self.dataset_id, items)]

    def records(self) -> list[dict[str, Any]]:
        path = f"/datasets/{self.dataset_id}/records"
        found: list[dict[str, Any]] = self.owner.get(path, limit=1000, include="responses")["items"]
        return found


def _answer_all(running: RunningServer, user: dict[str, Any], record_ids: list[str]) -> list[str]:
    """Answer each record; return the ids of the responses that the server has confirmed."""
    api = Api(running.url, user["api_key"])
    body = {"status": "submitted", "values": VALUES}
    confirmed: list[str] = []
    for record_id in record_ids:
        try:
            answer = api.send("POST", f"/records/{record_id}/responses", body)
        except httpx.HTTPError:  # the server is gone
            return confirmed
        if answer.is_success:
            confirmed.append(answer.json()["id"])
    return confirmed


def test_ten_reviewers_at_once_lose_nothing(argilla_server: RunningServer) -> None:
    pairs = Round(argilla_server, "ten-at-once", RECORDS, MIN_SUBMITTED)
    with ThreadPoolExecutor(REVIEWERS) as pool:
        lists = pool.map(lambda user: _answer_all(argilla_server, user, pairs.record_ids), pairs.users)
        confirmed = [each for ids in lists for each in ids]
    assert len(confirmed) == REVIEWERS * RECORDS
    records = pairs.records()
    assert {each["id"] for record in records for each in record["responses"]} == set(confirmed)
    assert [record["status"] for record in records] == ["completed"] * RECORDS
    assert pairs.owner.get(f"/datasets/{pairs.dataset_id}/progress")["completed"] == RECORDS


def test_a_changed_minimum_changes_what_is_complete(argilla_server: RunningServer) -> None:
    pairs = Round(argilla_server, "minimum", 3, 2)
    path = f"/datasets/{pairs.dataset_id}"
    _answer_all(argilla_server, pairs.users[0], pairs.record_ids)
    assert pairs.owner.get(f"{path}/progress")["completed"] == 0
    for record in pairs.records():
        for response in record["responses"]:
            Api(argilla_server.url, pairs.users[0]["api_key"]).call("DELETE", f"/responses/{response['id']}")
    pairs.owner.call("PATCH", path, {"distribution": {"strategy": "overlap", "min_submitted": 1}})
    _answer_all(argilla_server, pairs.users[1], pairs.record_ids)
    assert pairs.owner.get(f"{path}/progress")["completed"] == 3


def test_a_killed_server_loses_nothing_and_leaves_nothing_running(folder: Path) -> None:
    running = start_server(folder, port=0)
    children = descendants(running.pid)
    pairs = Round(running, "killed", 40, 1)
    answered = threading.Barrier(2)
    with ThreadPoolExecutor(REVIEWERS) as pool:
        first = pool.submit(_answer_some_then_meet, running, pairs, answered)
        others = [pool.submit(_answer_all, running, user, pairs.record_ids) for user in pairs.users[1:]]
        answered.wait(PATIENCE)
        os.kill(running.pid, signal.SIGKILL)
        confirmed = [each for one in [first, *others] for each in one.result(PATIENCE)]
    _wait_until_gone(children)
    assert confirmed
    assert find_server(folder) is None

    again = start_server(folder, port=0)
    assert again.pid != running.pid
    assert not again.new_owner
    pairs.owner = owner_of(again)
    records = pairs.records()
    kept = {each["id"] for record in records for each in record["responses"]}
    assert kept >= set(confirmed)
    for record in records:
        assert (record["status"] == "completed") == bool(record["responses"])
    with sqlite3.connect(again.database_file) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _answer_some_then_meet(running: RunningServer, pairs: Round, meet: threading.Barrier) -> list[str]:
    confirmed = _answer_all(running, pairs.users[0], pairs.record_ids[:10])
    meet.wait(PATIENCE)
    return confirmed + _answer_all(running, pairs.users[0], pairs.record_ids[10:])


def _wait_until_gone(pids: list[int]) -> None:
    _wait_until(lambda: not any(_runs(pid) for pid in pids))


def _wait_until(happens: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(PATIENCE * 10):
        if happens():
            return
        waiting.wait(0.1)
    raise AssertionError(f"it did not happen in {PATIENCE} s")


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_second_start_finds_the_first_and_stop_ends_all(folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: start_server(folder, port=0), range(2))
    assert (first.url, first.pid) == (second.url, second.pid)
    assert {first.new_owner, second.new_owner} == {True, False}
    assert find_server(folder) is not None
    _wait_until(lambda: len(descendants(first.pid)) >= 6)  # three supervisors, Redis, the web server, the worker
    children = descendants(first.pid)
    for path in (first.credentials_file, folder / "redis.conf"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    _check_listeners(children)

    assert stop_server(folder)
    _wait_until_gone([*children, first.pid])
    assert find_server(folder) is None
    assert not stop_server(folder)


def _check_listeners(pids: list[int]) -> None:
    """Each listening socket of these processes is on 127.0.0.1."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # one that ended meanwhile listens to nobody
            for descriptor in list(Path(f"/proc/{pid}/fd").iterdir()):
                inodes |= _socket_of(descriptor)
    found = []
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        rows = [line.split() for line in lines]
        found += [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]
    assert len(found) == 2  # the web server and Redis
    assert set(found) == {"0100007F"}


def _socket_of(descriptor: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
        target = str(descriptor.readlink())
        return {target[8:-1]} if target.startswith("socket:[") else set()
    return set()


def test_no_default_user_is_there(argilla_server: RunningServer) -> None:
    with httpx.Client(base_url=f"{argilla_server.url}/api/v1", timeout=PATIENCE, trust_env=False) as asking:
        answer = asking.post("/token", data={"username": "argilla", "password": "1234"})
        assert answer.status_code == 401
        assert asking.get("/me", headers={"X-Argilla-Api-Key": "argilla.apikey"}).status_code == 401
        owner = argilla_server.credentials()
        assert asking.post("/token", data={"username": owner.username, "password": owner.password}).is_success


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ReviewError, match=f"port {port} is taken"):
            start_server(tmp_path / "taken", port=port)
    assert find_server(tmp_path / "taken") is None


def test_a_redis_that_is_not_there_is_named(folder: Path) -> None:
    port = free_port()
    with pytest.raises(ReviewError, match="Redis can't be used") as caught:
        start_server(folder, port=0, redis_url=f"redis://:secret-word@127.0.0.1:{port}/0")
    assert "secret-word" not in str(caught.value)
    assert (folder / "credentials.json").exists()
    assert start_server(folder, port=0).new_owner, "nobody was shown the password yet"
    assert stop_server(folder)
    assert not start_server(folder, port=0).new_owner


def test_ctrl_c_ends_a_server_in_the_foreground(folder: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("stairdata")),
        "review",
        "serve",
        "--port",
        "0",
        "--folder",
        str(folder),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline().partition(": ")[0] for _ in range(4)]
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) in {0, 130}
    assert shown == ["url", "username", "password", "api_key"]
    _wait_until_gone(children)
    assert find_server(folder) is None
