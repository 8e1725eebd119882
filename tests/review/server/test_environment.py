"""The server's environment and secrets, with small stand-ins for what is installed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from stairdata_review.reviewers import salt_of
from stairdata_review.server import credentials, environment, server_processes
from stairdata_review.server.background import stop_server
from stairdata_review.server.folder import LOCK, STATE, hold, make_folder
from stairdata_review.server.running_server import RunningServer, find_server
from stairdata_schemas.errors import ReviewError
from stairdata_schemas.files import write_private


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing to install, and a cache of the test's own."""
    monkeypatch.setenv("STAIRDATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "PROBE", "")
    path = tmp_path / "pins.txt"
    path.write_text("# nothing\n")
    return path


@pytest.mark.slow
def test_an_environment_is_made_once_and_anew_if_it_is_broken(pins: Path) -> None:
    said: list[str] = []
    python = environment.ensure_environment(said.append, pins)
    assert python.exists()
    assert len(said) == 1
    assert environment.ensure_environment(said.append, pins) == python
    assert len(said) == 1
    python.unlink()
    environment.ensure_environment(said.append, pins)
    assert len(said) == 2
    (python.parent.parent / environment.COMPLETE).unlink()
    environment.ensure_environment(said.append, pins)
    assert len(said) == 3


@pytest.mark.slow
def test_what_can_not_be_installed_is_named_and_leaves_nothing(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pins.write_text("a-package-that-nobody-made==1.0\n")
    with pytest.raises(ReviewError, match="a-package-that-nobody-made"):
        environment.ensure_environment(pins=pins)
    assert not environment.environment_folder(pins).exists()


def test_other_pins_are_another_environment(pins: Path) -> None:
    before = environment.environment_folder(pins)
    pins.write_text("# something\n")
    assert environment.environment_folder(pins) != before


def test_credentials_are_made_once_for_this_user_alone(tmp_path: Path) -> None:
    made = credentials.ensure_credentials(tmp_path)
    assert credentials.ensure_credentials(tmp_path) == made
    assert (tmp_path / credentials.FILE).stat().st_mode & 0o777 == 0o600
    others = credentials.ensure_credentials(_folder(tmp_path / "other"))
    assert not set(made.model_dump().values()) & set(others.model_dump().values()) - {credentials.OWNER}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_credentials_that_others_can_read_or_that_are_damaged_are_refused(tmp_path: Path) -> None:
    made = credentials.ensure_credentials(tmp_path)
    path = tmp_path / credentials.FILE
    path.chmod(0o644)
    with pytest.raises(ReviewError, match="chmod 600"):
        credentials.read_credentials(tmp_path)
    write_private(path, made.model_dump_json().replace("api_key", "apikey"))
    with pytest.raises(ReviewError, match="damaged") as caught:
        credentials.read_credentials(tmp_path)
    assert made.api_key not in str(caught.value)
    path.unlink()
    with pytest.raises(ReviewError, match="review serve"):
        credentials.read_credentials(tmp_path)


def test_what_a_killed_server_left_is_not_taken_for_a_server(tmp_path: Path) -> None:
    left = RunningServer(url="http://127.0.0.1:1", folder=tmp_path, pid=os.getpid(), started="1")
    (tmp_path / STATE).write_text(left.model_dump_json())
    (tmp_path / LOCK).touch()
    assert find_server(tmp_path) is None
    assert not stop_server(tmp_path)


def test_a_process_that_is_not_the_server_is_not_ended(tmp_path: Path) -> None:
    with hold(tmp_path) as ours:
        assert ours
        other = RunningServer(url="http://127.0.0.1:1", folder=tmp_path, pid=os.getpid(), started="1")
        (tmp_path / STATE).write_text(other.model_dump_json())
        with pytest.raises(ReviewError, match="can't be found"):
            stop_server(tmp_path)


def test_the_server_gets_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "ARGILLA_API_KEY", "ARGILLA_DATABASE_URL", "PYTHONPATH", "SPACE_ID"):
        monkeypatch.setenv(name, "ours")
    made = credentials.ensure_credentials(tmp_path)
    given = server_processes.server_environment(tmp_path, made, "redis://x", 1)
    assert "ours" not in given.values()
    assert given["HF_HUB_DISABLE_TELEMETRY"] == given["HF_HUB_OFFLINE"] == "1"


def test_a_free_port_is_taken_if_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(server_processes, "DEFAULT_PORT", port)
        assert server_processes.choose_port(None) != port
        with pytest.raises(ReviewError, match=str(port)):
            server_processes.choose_port(port)


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReviewError, match="--folder"):
        make_folder(tmp_path / "file" / "server")


def test_a_server_starts_where_answers_were_imported_before(tmp_path: Path) -> None:
    salt_of(tmp_path / "new" / "argilla", "dataset")
    assert (tmp_path / "new" / "argilla").stat().st_mode & 0o777 == 0o700
    make_folder(tmp_path / "new" / "argilla")
    opened = tmp_path / "of an earlier release"
    opened.mkdir()
    opened.chmod(0o755)
    salt = salt_of(opened, "dataset")
    make_folder(opened)
    assert opened.stat().st_mode & 0o777 == 0o700
    assert salt_of(opened, "dataset") == salt


def test_a_folder_of_other_things_is_not_taken_from_others(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "notes.txt").touch()
    shared.chmod(0o755)
    with pytest.raises(ReviewError, match="holds other things and is open to other users"):
        make_folder(shared)
    assert shared.stat().st_mode & 0o777 == 0o755
    (shared / "notes.txt").unlink()
    make_folder(shared)
    make_folder(tmp_path / "new" / "one")
    assert {path.stat().st_mode & 0o777 for path in (shared, tmp_path / "new" / "one")} == {0o700}
