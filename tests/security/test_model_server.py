"""A model server that means harm: each build ends in time, in little memory, with one message and no artifact."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stairdata.generators.prompts.build import build_prompts
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from tests.security.measured import MEBIBYTE, STAIRDATA, Measured, run_measured
from tests.servers.hostile_llm import (
    FILLER,
    GIBIBYTE,
    Attack,
    HostileServer,
    Sent,
    chat_answer,
    chunk,
    deflated,
    forever,
    gzipped_twice,
    reply,
    sends,
    silence,
    streams,
)

TIMEOUT = 3
"""The recipe's `timeout`, in seconds."""
MOST_SECONDS = 60
"""For start, health check, one attempt and end, on a machine that has other things to do: a dozen without them."""
MOST_MEMORY = 500 * MEBIBYTE
"""The same command takes about 200 MiB where the server is sound."""
MOST_WORDS = 4000

OK = "HTTP/1.1 200 OK\nContent-Type: application/json\n"
CHUNKED = f"{OK}Transfer-Encoding: chunked\n\n"


class Case(NamedTuple):
    """An attack, and what is said about it."""

    name: str
    attack: Attack
    says: str
    is_everywhere: bool = False
    """On the list of models, too."""


def values(text: str) -> bytes:
    """Put many values into an answer that is sound apart from them."""
    return json.dumps(chat_answer()).replace('"choices": [', f'"choices": [{text * 600_000}').encode()


EVENTS = "HTTP/1.1 200 OK\nContent-Type: text/event-stream\n\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
MODELS = f'{OK}\n{{"data": ['
MANY_MODELS = {"data": [{"id": f"m{number}"} for number in range(10_000)]}
ESCAPES = b'{"error": {"message": "\\ud83d \\u001b[2J", "code": "\\udc80"}}'
ZLIB = "text/plain; charset=zlib"
LONG_WAIT = "more than 10000000 s"
END_OF_TIME = "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"


def nothing() -> Iterator[bytes]:
    return iter(())


CASES = [
    # bodies
    Case("a body of a gigabyte", streams(f'{OK}Content-Length: {GIBIBYTE}\n\n"', forever(FILLER)), "malformed"),
    Case("endless chunks of a byte", streams(CHUNKED, forever(chunk(b"[") * 999)), "malformed"),
    # time
    Case("silence", silence, "timeout"),
    Case("a body that drips", streams(f"{OK}Content-Length: 999\n\n", forever(b" "), pause=1), "timeout"),
    Case("chunks that drip", streams(CHUNKED, forever(chunk(b" ")), pause=1), "timeout"),
    Case("headers that drip", streams("HTTP/1.1 200 OK\nX-A: ", forever(b"a"), pause=1), "timeout"),
    Case("endless replies with 103", streams("", forever(EARLY * 99)), "timeout"),
    Case("endless replies with 100", streams("", forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 99)), "timeout"),
    Case("replies with 102 that drip", streams("", forever(b"HTTP/1.1 102 Wait\r\n\r\n"), pause=1), "timeout"),
    # HTTP
    Case("endless headers", streams("HTTP/1.1 200 OK\n", forever(b"X-A: b\r\n" * 99)), "connection"),
    Case("a header without end", streams("HTTP/1.1 200 OK\nX-A: ", forever(FILLER)), "connection"),
    Case("a status line without end", streams("HTTP/1.1 200 ", forever(FILLER)), "connection"),
    Case("a chunk's size without end", streams(CHUNKED, forever(b"1;a=" + FILLER)), "connection"),
    Case("trailers without end", streams(f"{CHUNKED}0\n", forever(b"X-A: b\r\n" * 99)), "connection"),
    Case("a chunk of nonsense", streams(f"{CHUNKED}zz\n{{}}\n", nothing), "connection"),
    Case("a body that is too short", streams(f"{OK}Content-Length: 999\n\n{{", nothing), "connection"),
    Case("two lengths", streams(f"{OK}Content-Length: 1\nContent-Length: 999\n\n{{", nothing), "connection"),
    Case("no HTTP", streams("", forever(b"\x00\xff\r\n" * 999)), "connection"),
    # decompression
    Case("a deflate bomb", sends(deflated(4 * GIBIBYTE), "Content-Encoding: deflate"), "malformed"),
    Case("a gzip bomb in a gzip bomb", sends(gzipped_twice(GIBIBYTE), "Content-Encoding: gzip, gzip"), "malformed"),
    Case("a charset that is a compression", sends(deflated(900 * MEBIBYTE), kind=ZLIB), "malformed"),
    Case("an error in such a charset", sends(deflated(900 * MEBIBYTE), status="400 No", kind=ZLIB), "invalid_request"),
    # JSON
    Case("10,000 choices", sends(chat_answer(choices=chat_answer()["choices"] * 10_000)), "malformed"),
    Case("600,000 empty choices", sends(values("{},")), "malformed"),
    # words and numbers that are shown
    Case("a megabyte of words", sends({"error": {"message": "no " * 300_000}}, status="400 No"), "invalid_request"),
    Case("half a character and escapes", sends(ESCAPES, status="400 No"), "invalid_request"),
    Case("a wait of 309 digits", sends(b"{}", "Retry-After: 1e308", status="429 Slow"), LONG_WAIT),
    Case("a wait until the year 9999", sends(b"{}", END_OF_TIME, status="503 No"), LONG_WAIT),
    Case("a wait that is no number", sends(b"{}", "Retry-After: nan", status="429 Slow"), "rate_limited"),
    Case("an endless wait", sends(b"{}", "Retry-After: inf", status="429 Slow"), "rate_limited"),
    # the list of models
    Case("models without end", streams(MODELS, forever(b'{"id": "m"},' * 999)), "can't be used", is_everywhere=True),
    Case("models that drip", streams(MODELS, forever(b" "), pause=1), "can't be used", is_everywhere=True),
    Case("10,000 models", sends(MANY_MODELS), "and 9,980 more", is_everywhere=True),
    Case("models nested 100,000 deep", sends(b"[" * 100_000), "can't be used", is_everywhere=True),
]
ONE_AFTER_ANOTHER = {
    "an endless body": streams(f'{OK}\n"', forever(FILLER)),
    "an endless body in chunks": streams(CHUNKED, forever(chunk(FILLER))),
    "endless events": streams(EVENTS, forever(b"data: {}\n\n" * 99)),
    "an endless error": streams("HTTP/1.1 500 No\n\n", forever(FILLER)),
    "ten encodings": sends(b"{}", "Content-Encoding: " + ", ".join(["gzip"] * 10)),
    "bytes that are no gzip": sends(b"{}", "Content-Encoding: gzip"),
    "JSON nested 100,000 deep": sends(b'{"choices": ' + b"[" * 100_000),
    "lists nested as deep as goes": sends(b'{"choices": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "600,000 empty lists": sends(values("[],")),
    "a number of a million digits": sends(b'{"choices": ' + b"9" * 1_000_000 + b"}"),
    "a code of 4,000 digits": sends(b'{"error": {"code": ' + b"9" * 4000 + b"}}"),
    "a list": sends(b"[" + b"[]," * 1000 + b"1]"),
}  # fmt: skip
"""Attacks that are all malformed answers, on one build."""
QUICK = {"a body of a gigabyte", "a deflate bomb"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with twenty prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": f"Question {number}?", "task": "helpfulness"} for number in range(20)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate({"prompts": {"sources": [{"path": str(folder / "q.jsonl")}]}})
    build_prompts(recipe, BuildOptions(root=folder / "artifacts"))
    return folder / "artifacts"


def build(
    server: HostileServer, prompts: Path, folder: Path, *options: str, limit: int = 1, **teacher: Any
) -> Measured:
    """Ask a teacher for structured reasoning about some prompts."""
    shutil.copytree(prompts, folder / "artifacts", dirs_exist_ok=True)
    endpoint = {"base_url": server.base_url, "model": "m", "timeout": TIMEOUT, "retries": 0, **teacher}
    recipe = {"structured_cot": {"teacher": endpoint, "concurrency": 1}, "prices": {"m": {"input": 1, "output": 2}}}
    (folder / "r.yaml").write_text(json.dumps(recipe))
    command = [*STAIRDATA, "build", "structured-cot", "--recipe", "r.yaml", "--limit", str(limit), *options]
    return run_measured(command, folder, limit=2 * MOST_SECONDS)


def kinds(folder: Path) -> set[str]:
    """Return the kinds of the artifacts that are there."""
    return {path.relative_to(folder / "artifacts").parts[0] for path in (folder / "artifacts").rglob("manifest.json")}


def check(ended: Measured, folder: Path, says: str) -> None:
    """Compare how a build ended with what each has to end with."""
    shown = f"{ended.stdout}{ended.stderr}"
    assert ended.code == 1, shown[-MOST_WORDS:]
    assert shown.count("error: ") == 1
    assert says in shown
    assert len(shown) < MOST_WORDS
    assert "Traceback" not in shown
    assert not any(character < " " and character != "\n" for character in shown)
    assert kinds(folder) == {"prompts"}
    assert ended.peak < MOST_MEMORY
    assert ended.seconds < MOST_SECONDS


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.slow]) for case in CASES],
)
def test_an_attack_ends_in_time_and_in_little_memory(case: Case, prompts: Path, tmp_path: Path) -> None:
    with HostileServer(case.attack, case.is_everywhere) as server:
        check(build(server, prompts, tmp_path), tmp_path, case.says)


@pytest.mark.slow
def test_one_attack_after_another_refuses_a_prompt_each(prompts: Path, tmp_path: Path) -> None:
    attacks = list(ONE_AFTER_ANOTHER.values())

    def attack(connection: socket.socket, sent: Sent) -> None:
        attacks.pop()(connection, sent)

    count = len(attacks)
    with HostileServer(attack) as server:
        ended = build(server, prompts, tmp_path, limit=count)
    check(ended, tmp_path, f"refused: malformed  {count:>9}")
    assert attacks == []


@pytest.mark.slow
def test_names_that_python_uses_are_fields_that_nobody_reads(prompts: Path, tmp_path: Path) -> None:
    with HostileServer(sends(chat_answer(_fields_set=5, __class__=6, model_config=7))) as server:
        ended = build(server, prompts, tmp_path, limit=1)
    assert (ended.code, ended.stdout) == (0, "structured_cot@1.0.0\n"), ended.stderr


@pytest.mark.slow
def test_a_redirect_takes_no_prompt_with_it(prompts: Path, tmp_path: Path) -> None:
    with HostileServer(sends(chat_answer())) as elsewhere:
        attack = sends(b"", f"Location: {elsewhere.base_url}/chat/completions", status="307 There")
        with HostileServer(attack) as server:
            check(build(server, prompts, tmp_path), tmp_path, "if the address is right, write it as base_url")
        assert elsewhere.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -5, "completion_tokens": -5},
        {"prompt_tokens": "a", "completion_tokens": "b"},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 10**300, "completion_tokens": 10**300},
    ],
    ids=["negative", "text", "zero", "huge"],
)
def test_a_limit_on_tokens_stops_a_server_that_does_not_count(usage: Any, prompts: Path, tmp_path: Path) -> None:
    with HostileServer(sends(chat_answer(usage=usage))) as server:
        ended = build(server, prompts, tmp_path, "--max-total-tokens", "10000", limit=6, max_tokens=1000)
        assert 0 < len([sent for sent in server.requests if sent.method == "POST"]) < 6
    check(ended, tmp_path, "more than --max-total-tokens 10000")


@pytest.mark.slow
def test_unbelievable_usage_is_told(prompts: Path, tmp_path: Path) -> None:
    with HostileServer(sends(chat_answer(usage={"prompt_tokens": 0, "completion_tokens": 0}))) as server:
        ended = build(server, prompts, tmp_path, limit=6)
    assert ended.code == 0, ended.stderr
    assert kinds(tmp_path) == {"prompts", "structured_cot"}
    assert "unbelievable_usage          6" in ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_limit_on_time_ends_a_build_that_is_being_held_up(prompts: Path, tmp_path: Path) -> None:
    attack = streams(CHUNKED, forever(chunk(b" ")), pause=0.5)
    with HostileServer(attack) as server:
        ended = build(server, prompts, tmp_path, "--max-seconds", "1", limit=6, retries=8)
        assert len([sent for sent in server.requests if sent.method == "POST"]) <= 2
    check(ended, tmp_path, "--max-seconds 1 has passed")


def batch_server(content: Attack, **changes: Any) -> Attack:
    """Take a batch, and answer with some content."""
    batch = {"id": "batch-1", "created_at": 0, "status": "completed", "output_file_id": "file-2", **changes}

    def attack(connection: socket.socket, sent: Sent) -> None:
        if sent.path.endswith("/content"):
            content(connection, sent)
        elif sent.path.endswith("/models"):
            reply(connection, json.dumps({"data": [{"id": "m"}]}).encode())
        elif sent.path.endswith("/files"):
            reply(connection, json.dumps({"id": "file-1"}).encode())
        else:
            reply(connection, json.dumps(batch).encode())

    return attack


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "changes", "says"),
    [
        (streams(CHUNKED, forever(chunk(FILLER))), {}, "malformed: 'the answer has more than"),
        (streams(CHUNKED, forever(chunk(b"\n")), pause=1), {}, "timeout"),
        (sends(deflated(4 * GIBIBYTE), "Content-Encoding: deflate"), {}, "malformed: 'the answer has more than"),
        (streams("", forever(EARLY * 99)), {}, "timeout"),
        (sends(b"{}"), {"id": "\x1b[2J"}, "as an id"),
        (sends(b"{}"), {"errors": {"data": 7}}, "can't be read"),
    ],
    ids=["endless", "drips", "a bomb", "endless replies with 103", "an id of escapes", "errors that are none"],
)
def test_the_files_of_a_batch_are_bounded(
    content: Attack, changes: dict[str, Any], says: str, prompts: Path, tmp_path: Path
) -> None:
    with HostileServer(batch_server(content), is_everywhere=True) as server:
        submitted = build(server, prompts, tmp_path, "--batch", limit=6)
        assert submitted.code == 0, submitted.stderr
        server.attack = batch_server(content, **changes)
        check(build(server, prompts, tmp_path, "--batch", "collect", limit=6), tmp_path, says)
    assert sum(path.stat().st_size for path in (tmp_path / "artifacts").rglob("*")) < 10 * MEBIBYTE
