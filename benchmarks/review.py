"""How fast the review server answers: pages of records, with filters, sort orders and text, and what they cost.

    python benchmarks/review.py [--records 100000] [--reviewers 10] [--repeats 9]

starts a server of its own in a temporary folder, writes the records straight into its database, and then asks the
server's own endpoints as the user interface does. Each line: median and slowest of the repeats, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from stairdata_review.server.background import start_server, stop_server
from stairdata_review.server.running_server import RunningServer

PAGE = 50
LABELS = ["A", "B", "tie", "both bad"]
STEP = 1200  # characters of one step, as in the quickstart's trees
WORDS = [f"word{number}" for number in range(5000)]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--reviewers", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        running = start_server(Path(folder), port=0)
        try:
            measure(running, options.records, options.reviewers, options.repeats)
        finally:
            stop_server(Path(folder))


def measure(running: RunningServer, records: int, reviewers: int, repeats: int) -> None:
    """Fill the server, ask it, print what each question took."""
    owner = _client(running, running.credentials().api_key)
    dataset, users = _make_dataset(owner, reviewers)
    started = time.monotonic()
    fill(running.database_file, dataset, [user["id"] for user in users], records)
    print(f"{records} records and their text index written in {time.monotonic() - started:.1f} s")
    print(f"the database: {running.database_file.stat().st_size / 2**20:.0f} MiB")
    reviewer = _client(running, users[0]["api_key"])
    print(f"{'question':48} {'found':>7} {'median':>8} {'slowest':>8}  (ms, a page of {PAGE})")
    for name, mine, body, offset in questions(records):
        path = f"{'/me' if mine else ''}/datasets/{dataset}/records/search"
        client = reviewer if mine else owner
        total, times = _ask(client, path, body, offset, repeats)
        print(f"{name:48} {total:7} {statistics.median(times):8.0f} {max(times):8.0f}")
    for name, path in (
        ("progress of the dataset", f"/datasets/{dataset}/progress"),
        ("progress of a reviewer", f"/me/datasets/{dataset}/metrics"),
    ):
        times = [_timed(lambda path=path: reviewer.get(path).raise_for_status()) for _ in range(repeats)]
        print(f"{name:48} {'':7} {statistics.median(times):8.0f} {max(times):8.0f}")


def questions(records: int) -> Iterator[tuple[str, bool, dict[str, Any], int]]:
    """Yield name, whether a reviewer asks, body and offset."""
    mine = {"entity": "response", "property": "status"}
    status = {"entity": "record", "property": "status"}
    pending = [_terms(mine, "pending"), _terms(status, "pending")]
    yield "a reviewer's pending (as the interface asks)", True, _filters(*pending), 0
    yield "the same, in the middle", True, _filters(*pending), records // 4
    yield "a reviewer's submitted", True, _filters(_terms(mine, "submitted")), 0
    yield "a reviewer's drafts and discarded", True, _filters(_terms(mine, "draft", "discarded")), 0
    yield "the team's pending", False, _filters(_terms(mine, "pending")), 0
    yield "completed records", False, _filters(_terms(status, "completed")), 0
    yield "no filter", False, {}, 0
    task = {"entity": "metadata", "metadata_property": "task"}
    margin = {"entity": "metadata", "metadata_property": "margin"}
    verdict = {"entity": "response", "question": "verdict"}
    yield "pending, a task", True, _filters(*pending, _terms(task, "safety")), 0
    yield "pending, a range of margins", True, _filters(*pending, _range(margin, 0.5, 0.6)), 0
    yield "pending, smallest margin first", True, {**_filters(*pending), "sort": [_order(margin)]}, 0
    yield "newest first", False, {"sort": [_order({"entity": "record", "property": "inserted_at"}, "desc")]}, 0
    yield "a verdict of anybody's", False, _filters(_terms(verdict, "A")), 0
    yield "sorted by verdict", False, {"sort": [_order(verdict)]}, 0
    yield "pending, a rare word", True, {**_filters(*pending), "query": {"text": {"q": "word4321 word17"}}}, 0
    yield "pending, a word of half the records", True, {**_filters(*pending), "query": {"text": {"q": "frequent"}}}, 0
    yield "a phrase in one field", False, {"query": {"text": {"q": '"first words"', "field": "step_a"}}}, 0
    yield "a word that begins so", False, {"query": {"text": {"q": "word432*"}}}, 0
    yield "a word two letters away", False, {"query": {"text": {"q": "wrod4321~2"}}}, 0


def fill(database: Path, dataset: str, users: list[str], records: int) -> None:
    """Write records and responses as the server would have; the triggers of the search see them."""
    rng = random.Random(7)
    connection = sqlite3.connect(database, timeout=60)
    with connection:
        for number in range(records):
            record, when = uuid.uuid4().hex, _moment(number)
            answers = rng.sample(users, k=rng.choice([0, 0, 0, 1, 2]))
            statuses = [rng.choice(["submitted", "submitted", "submitted", "draft", "discarded"]) for _ in answers]
            status = "completed" if statuses.count("submitted") >= 2 else "pending"
            row = (record, _fields(rng, number), f"pair-{number}", dataset.replace("-", ""), when, when)
            connection.execute(
                "INSERT INTO records (id, fields, external_id, dataset_id, inserted_at, updated_at, metadata, status) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, _metadata(rng), status),
            )
            connection.executemany(
                'INSERT INTO responses (id, "values", status, record_id, user_id, inserted_at, updated_at) '
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (uuid.uuid4().hex, _verdict(rng), state, record, user.replace("-", ""), when, when)
                    for user, state in zip(answers, statuses, strict=True)
                ],
            )
    connection.close()


def _fields(rng: random.Random, number: int) -> str:
    def text() -> str:
        words = rng.choices(WORDS, k=STEP // 9)
        return f"first words of {number} {' '.join(words)}" + (" frequent" if number % 2 else "")

    prompt = [{"role": "user", "content": f"question {number} {' '.join(rng.choices(WORDS, k=20))}"}]
    return json.dumps({"prompt": prompt, "prefix": text(), "step_a": text(), "step_b": text()})


def _metadata(rng: random.Random) -> str:
    mapping = {"a_is": rng.choice(["chosen", "rejected"]), "pair": uuid.uuid4().hex[:16]}
    numbers = {"margin": rng.random() * 3, "depth": rng.randint(1, 7), "iteration": rng.randint(1, 3)}
    return json.dumps({"task": rng.choice(["safety", "helpfulness"]), **numbers, **mapping})


def _verdict(rng: random.Random) -> str:
    return json.dumps({"verdict": {"value": rng.choice(LABELS)}})


def _moment(number: int) -> str:
    return (BEGIN + timedelta(milliseconds=number)).strftime("%Y-%m-%d %H:%M:%S.%f")


def _terms(scope: dict[str, str], *values: str) -> dict[str, Any]:
    return {"type": "terms", "scope": scope, "values": list(values)}


def _range(scope: dict[str, str], low: float, high: float) -> dict[str, Any]:
    return {"type": "range", "scope": scope, "ge": low, "le": high}


def _order(scope: dict[str, str], order: str = "asc") -> dict[str, Any]:
    return {"scope": scope, "order": order}


def _filters(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"filters": {"and": list(filters)}}


def _client(running: RunningServer, key: str) -> httpx.Client:
    return httpx.Client(
        base_url=f"{running.url}/api/v1", headers={"X-Argilla-Api-Key": key}, timeout=600, trust_env=False
    )


def _make_dataset(owner: httpx.Client, reviewers: int) -> tuple[str, list[dict[str, Any]]]:
    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = owner.post(path, json=body).raise_for_status().json()
        return answer

    workspace = post("/workspaces", {"name": "benchmark"})["id"]
    users = []
    for number in range(reviewers):
        name = f"reviewer-{number}"
        body = {"first_name": name, "username": name, "role": "annotator", "password": uuid.uuid4().hex}
        users.append(post("/users", body))
        post(f"/workspaces/{workspace}/users", {"user_id": users[-1]["id"]})
    distribution = {"strategy": "overlap", "min_submitted": 2}
    dataset = post("/datasets", {"name": "pairs", "workspace_id": workspace, "distribution": distribution})["id"]
    for name in ("prompt", "prefix", "step_a", "step_b"):
        kind = {"type": "chat" if name == "prompt" else "text", "use_markdown": False}
        post(f"/datasets/{dataset}/fields", {"name": name, "title": name, "required": True, "settings": kind})
    options = [{"value": label, "text": label} for label in LABELS]
    verdict = {"type": "label_selection", "options": options}
    post(
        f"/datasets/{dataset}/questions",
        {"name": "verdict", "title": "verdict", "required": True, "settings": verdict},
    )
    for name, kind_of in (("task", "terms"), ("margin", "float"), ("depth", "integer"), ("iteration", "integer")):
        property_ = {"name": name, "title": name, "settings": {"type": kind_of}, "visible_for_annotators": True}
        post(f"/datasets/{dataset}/metadata-properties", property_)
    owner.put(f"/datasets/{dataset}/publish").raise_for_status()
    return dataset, users


def _ask(client: httpx.Client, path: str, body: dict[str, Any], offset: int, repeats: int) -> tuple[int, list[float]]:
    parameters: dict[str, Any] = {"offset": offset, "limit": PAGE, "include": ["responses", "suggestions"]}
    total, times = 0, []
    for _ in range(repeats):
        started = time.monotonic()
        answer = client.post(path, json=body, params=parameters).raise_for_status()
        times.append((time.monotonic() - started) * 1000)
        total = answer.json()["total"]
    return total, times


def _timed(call: Any) -> float:
    started = time.monotonic()
    call()
    return (time.monotonic() - started) * 1000


if __name__ == "__main__":
    main()
