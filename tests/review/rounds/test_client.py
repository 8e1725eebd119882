"""Which server is talked to, with which key, and what is said when it can't be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from stairdata_review.rounds import client
from stairdata_review.rounds.client import Argilla, ServerAccess, find_access
from stairdata_schemas.errors import ReviewError, UsageError

KEY = "secret-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGILLA_API_KEY", KEY)
    monkeypatch.setattr(client, "WAITS", (0.0,))


def argilla(answer: Callable[[httpx.Request], httpx.Response], url: str = "http://127.0.0.1:1") -> Argilla:
    made = Argilla(ServerAccess(url, KEY))
    made._http._transport = httpx.MockTransport(answer)
    return made


@pytest.mark.parametrize(
    ("url", "remote", "message"),
    [
        ("http://argilla.example.org", True, "use https"),
        ("https://argilla.example.org", False, "add --remote"),
        ("http://127.0.0.1.example.org", True, "use https"),
        ("http://localhost@evil.example", True, "must not contain a name"),
        ("https://user:word@argilla.example.org", True, "must not contain a name, password or query"),
        ("ftp://127.0.0.1", True, "is not an address"),
        ("argilla.example.org", True, "is not an address"),
        ("http://[::1", True, "is not an address"),
    ],
)
def test_places_that_are_not_talked_to(url: str, remote: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_access(None, url, remote=remote)


def test_places_that_are_talked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://127.0.0.1:6900", "http://localhost:6900/", "http://[::1]:6900"):
        assert find_access(None, url, remote=False) == ServerAccess(url.rstrip("/"), KEY)
    assert find_access(None, "https://a.example.org", remote=True).key == KEY
    with pytest.raises(UsageError, match="not both"):
        find_access(tmp_path, "http://127.0.0.1", remote=False)
    with pytest.raises(ReviewError, match="review serve --background"):
        find_access(tmp_path, None, remote=False)
    monkeypatch.setenv("ARGILLA_API_KEY", "line\nbreak")
    with pytest.raises(ReviewError, match="no API key can have") as raised:
        find_access(None, "http://127.0.0.1", remote=False)
    assert "break" not in str(raised.value)
    monkeypatch.delenv("ARGILLA_API_KEY")
    with pytest.raises(ReviewError, match="set ARGILLA_API_KEY"):
        find_access(None, "http://127.0.0.1", remote=False)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "{}", "doesn't know the API key"),
        (403, "{}", "that of an owner or admin"),
        (302, "", "redirects to"),
        (422, '{"detail": "bad"}', "422"),
        (503, KEY[:3], "the same command continues"),
        (200, "<html>", "is not an Argilla server"),
        (200, '{"role": "annotator"}', "an annotator's"),
        (200, "[]", "this is not Argilla"),
    ],
)
def test_what_a_server_may_say(status: int, body: str, message: str) -> None:
    with (
        argilla(lambda _: httpx.Response(status, text=body)) as made,
        pytest.raises(ReviewError, match=message) as raised,
    ):
        made.check()
    assert KEY not in str(raised.value)
    assert raised.value.__cause__ is None


def test_the_hubs_token_goes_to_spaces_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGILLA_HF_TOKEN", "hf_secret")
    assert (
        Argilla(ServerAccess("https://me-argilla.hf.space", KEY))._http.headers["authorization"] == "Bearer hf_secret"
    )
    for url in ("http://127.0.0.1", "https://a.example.org", "https://hf.space.example.org"):
        assert "authorization" not in Argilla(ServerAccess(url, KEY))._http.headers


def test_what_makes_something_new_is_sent_once() -> None:
    calls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request.method)
        return httpx.Response(500)

    with argilla(answer) as made:
        with pytest.raises(ReviewError):
            made.post("/x", {})
        with pytest.raises(ReviewError):
            made.get("/x")
        with pytest.raises(ReviewError):
            made.put("/x")
    assert calls == ["POST", "GET", "GET", "PUT", "PUT"]


def test_records_that_come_twice_are_noticed() -> None:
    page = {"items": [{"id": "1"}, {"id": "1"}], "total": 2}
    with argilla(lambda _: httpx.Response(200, json=page)) as made, pytest.raises(ReviewError, match="changed while"):
        list(made.records("d"))
    with argilla(lambda _: httpx.Response(200, json={"items": [], "total": 0})) as made:
        assert list(made.records("d")) == []
    with argilla(lambda _: httpx.Response(200, json={"items": [], "total": 3})) as made, pytest.raises(ReviewError):
        list(made.records("d"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from stairdata.cli import review_round

    review_round.check_extra()
    monkeypatch.setattr(review_round, "EXTRA", ("httpx", "a_library_that_is_not_there"))
    with pytest.raises(UsageError, match=r"pip install 'stairdata\[review\]'"):
        review_round.check_extra()


@pytest.mark.slow
def test_the_command_line_says_what_to_do(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = Path(sys.executable).parent / "stairdata"
    for arguments, status, said in (
        (["status", "--folder", str(tmp_path)], 1, "review serve --background"),
        (["pull", "--url", "http://a.example.org"], 2, "use https"),
        (["push", "prompts", "--root", str(tmp_path)], 1, "no complete prompts"),
        (["export", "./nothing", "--file", "x.csv"], 1, "no artifact folder"),
    ):
        done = subprocess.run([str(program), "review", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert KEY not in done.stdout + done.stderr
