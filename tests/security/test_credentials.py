"""Passwords and keys in recipes, options and variables are refused, and no message, log or traceback shows one."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stairdata.recipe import Recipe
from stairdata.recipe.loading import load_recipe, parse_recipe
from stairdata_schemas.errors import HubError, RecipeError, UsageError
from stairdata_schemas.secrets.redaction import RedactingStream, hold, redact
from stairdata_schemas.secrets.urls import url_credentials, without_credentials
from tests.security.measured import STAIRDATA, run_measured

WORD = "pa55w0rd-of-mine"
WITH_CREDENTIALS = [
    f"http://me:{WORD}@host.example.org/v1",
    f"https://{WORD}@host.example.org/v1",
    f"http://:{WORD}@127.0.0.1:8000/v1",
    f"me:{WORD}@host.example.org/v1",
    f"https://host.example.org/v1?api-key={WORD}",
    f"https://host.example.org/v1?api_key={WORD}",
    f"https://host.example.org/v1?version=1&subscription-key={WORD}",
    f"https://host.example.org/v1?token={WORD}",
    f"https://host.example.org/v1?X-Amz-Signature={WORD}",
    f"https://host.example.org/v1#access_token={WORD}",
    f"wss://host.example.org/v1?clientSecret={WORD}",
]
WITHOUT = [
    "http://127.0.0.1:8000/v1",
    "https://a.openai.azure.com/openai/deployments/gpt?api-version=2025-04-01",
    "http://[::1]:8000/v1",
    "localhost:8000/v1",
    "https://host.example.org/@me/v1?page=2&monkey=3",
    "",
]


@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_credentials_in_a_url_are_named_and_not_shown(url: str) -> None:
    held = url_credentials(url)
    assert held is not None
    assert WORD not in held
    assert WORD not in without_credentials(url) or "://" not in url
    assert WORD not in redact(f"can't reach {url}: refused") or "://" not in url


@pytest.mark.parametrize("url", WITHOUT)
def test_a_url_without_credentials_is_fine(url: str) -> None:
    assert url_credentials(url) is None
    assert redact(f"can't reach {url}: refused") == f"can't reach {url}: refused"


def endpoint(**settings: str) -> dict[str, str]:
    return {"model": "m", **settings}


def with_endpoint(place: str, settings: dict[str, str]) -> dict[str, Any]:
    """Return a recipe's sections with an endpoint at a place."""
    data: dict[str, Any] = settings
    for name in reversed(place.split(".")):
        data = {name: data}
    if place == "trees.judge.endpoint":
        data["trees"]["judge"]["kind"] = "endpoint"
    return data


PLACES = [
    "actor",
    "trees.judge.endpoint",
    "prompts.task_judge",
    "prompts.twins.teacher",
    "structured_cot.teacher",
    "structured_cot.teachers.second",
    "structured_cot.judge",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_a_recipe_with_credentials_in_a_url_is_refused(place: str, url: str) -> None:
    with pytest.raises(RecipeError, match=rf"{re.escape(place)}\.base_url: .*api_key_env") as caught:
        parse_recipe(Recipe, with_endpoint(place, endpoint(base_url=url)))
    assert WORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["sk-" + WORD * 3, "hf_" + "aB3" * 12, "0a1b2c3d4e5f60718293a4b5c6d7e8f9"])
def test_a_key_in_place_of_the_name_of_its_variable_is_refused(place: str, key: str) -> None:
    settings = endpoint(base_url="http://127.0.0.1:8000/v1", api_key_env=key)
    with pytest.raises(RecipeError, match=rf"{re.escape(place)}\.api_key_env: this looks like a key") as caught:
        parse_recipe(Recipe, with_endpoint(place, settings))
    assert key not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "data",
    [
        {"prompts": {"sources": [{"path": WITH_CREDENTIALS[0]}]}},
        {"prompts": {"sources": [{"hub": WITH_CREDENTIALS[1]}]}},
        {"prompts": {"decontaminate": [WITH_CREDENTIALS[0]]}},
        {"prompts": {"sources": [{"path": "a", "where": {"url": [WITH_CREDENTIALS[4]]}}]}},
        {"structured_cot": {"templates": {"safety": WITH_CREDENTIALS[0]}}},
        {"actor": {"tokenizer": WITH_CREDENTIALS[0]}},
        {"actor": {"path": WITH_CREDENTIALS[0]}},
        {"actor": WITH_CREDENTIALS[0]},
        {"trees": {"iterations": WITH_CREDENTIALS[0]}},
        {"actor": {"concurrency": "sk-" + WORD * 3, "model": WITH_CREDENTIALS[0]}},
        {"prices": {"gpt": {"input": WITH_CREDENTIALS[0]}}},
    ],
    ids=lambda data: json.dumps(data)[:30],
)
def test_no_mistake_of_a_recipe_shows_its_credentials(data: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(Recipe, data)
    assert WORD not in "".join(traceback.format_exception(caught.value))


def test_no_override_shows_its_credentials() -> None:
    for override in (f"{WITH_CREDENTIALS[0]}", f"actor.base_url=[{WITH_CREDENTIALS[0]}"):
        with pytest.raises(UsageError) as caught:
            load_recipe(Recipe, None, [override])
        assert WORD not in str(caught.value)


OPTIONS = [
    ("build", "trees", "--endpoints", f"http://127.0.0.1:1/v1,{WITH_CREDENTIALS[0]}"),
    ("build", "trees", "--endpoints", f"judge=http://127.0.0.1:1/v1,{WITH_CREDENTIALS[0]}"),
    ("build", "trees", "--executor", "ray", "--address", f"ray://me:{WORD}@head:10001"),
    ("quickstart", "--teacher-url", WITH_CREDENTIALS[4]),
    ("review", "serve", "--redis-url", f"redis://:{WORD}@127.0.0.1:6379/0"),
    ("review", "serve", "--redis-url", f"redis://127.0.0.1:6379/0?password={WORD}"),
    ("review", "status", "--url", WITH_CREDENTIALS[0]),
    ("review", "status", "--url", WITH_CREDENTIALS[3]),
    ("review", "invite", "somebody", "--url", WITH_CREDENTIALS[4]),
]


@pytest.mark.parametrize("words", OPTIONS, ids=lambda words: " ".join(words[:4]).split("://")[0])
def test_a_url_option_with_credentials_is_one_message_without_them(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stairdata.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stairdata", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "://" in words[-1] or words[-1] == WITH_CREDENTIALS[3]
    assert WORD not in said.out + said.err
    assert re.search(r"error: .*(password|query|name)", said.err), said.err
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_goes_into_a_manifest_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from stairdata.cli.quickstart import find_teacher
    from stairdata.hub.client import api

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", WITH_CREDENTIALS[0])
    with pytest.raises(UsageError, match="OPENAI_BASE_URL") as caught:
        find_teacher(None, "m")
    assert WORD not in str(caught.value)
    monkeypatch.setattr(constants, "ENDPOINT", f"https://me:{WORD}@hub.example.org")
    with pytest.raises(HubError, match="HF_ENDPOINT") as refused:
        api()
    assert WORD not in str(refused.value)


def test_what_is_written_to_a_stream_has_no_secret_in_it() -> None:
    hold("a key/that is held")
    written = io.StringIO()
    stream: Any = RedactingStream(written)
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    logger.warning("the server says %s", "a key/that is held")
    try:
        raise ValueError("x=a%20key%2Fthat%20is%20held; Bearer " + "a1" * 12)
    except ValueError as error:
        traceback.print_exception(error, file=stream)
    stream.writelines(["sk-" + "a1" * 20, "\n", f"http://me:{WORD}@h/v1?key={WORD}\n", "plain words\n"])
    said = written.getvalue()
    assert "held" not in said
    assert "a1a1" not in said
    assert WORD not in said
    assert "ValueError: x=<secret>; <secret>" in said
    assert "plain words" in said
    assert stream.isatty() is False


@pytest.fixture
def echoing_server() -> Iterator[str]:
    """The URL of a server that refuses what is sent to it, and repeats the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            message = f"Incorrect API key provided: {given}"
            body = json.dumps({"error": {"message": message, "code": "invalid_api_key"}}).encode()
            self.answer(401, body)

        def do_GET(self) -> None:
            self.answer(200, b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_traceback_does_not_show_the_key_that_a_server_repeats(echoing_server: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "What is 2 + 2?"}\n')
    teacher = {"base_url": echoing_server, "model": "m", "api_key_env": "TEACHER_LOGIN"}
    sections = {
        "prompts": {"sources": [{"path": "q.jsonl", "task": "helpfulness"}]},
        "structured_cot": {"teacher": teacher},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(sections))
    key = "plain/key+of+a+teacher"  # of no shape, and by no telling name
    for words in (["prompts"], ["structured-cot", "--batch"]):
        command = [*STAIRDATA, "--debug", "build", *words, "--recipe", "recipe.yaml"]
        ended = run_measured(command, tmp_path, limit=120, environment={"TEACHER_LOGIN": key})
    assert ended.code == 1
    assert "AttemptFailedError: Error code: 401 - Incorrect API key provided: <secret>" in ended.stderr
    assert key not in ended.stdout + ended.stderr
