"""A real Argilla server of our own: environment, Redis, SQLite and our search engine, started with one call.

It runs as three processes: redis-server on a private port, Argilla's web server on 127.0.0.1, and the worker of its
background jobs. Each is supervised (`stairdata_schemas.processes`): it ends when the process that keeps them is gone.
That keeper is this process in the foreground, or `python -m stairdata_review.keeper` in the background. While it
lives it holds the lock `server.lock` in the server's folder, so that a second start finds the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from stairdata_review.credentials import FILE, Credentials, read_credentials
from stairdata_review.environment import ensure_environment
from stairdata_schemas.errors import ReviewError, quote
from stairdata_schemas.files import write_atomic
from stairdata_schemas.processes import last_line, started_at, wait_for

OnProgress = Callable[[str], None]

DEFAULT_PORT = 6900
STATE = "server.json"
LOCK = "server.lock"
UNTOLD = "owner.untold"
"""Is there from the making of the owner's credentials until a start with them succeeds."""
DATABASE = "argilla.db"
LOGS = "logs"
POLL = 0.1
REQUEST_TIMEOUT = 10.0
STOP_TIMEOUT = 40.0
START_TIMEOUT = 180.0
BUSY_PATIENCE = START_TIMEOUT + 20  # another keeper may be starting
PROBE_PATIENCE = 0.1
"""Seconds; who only looks whether the lock is held holds it for less."""
HOLD_PATIENCE = 2.0
ANOTHER_RUNS = 75
"""The keeper's exit status if another one holds the folder."""


class Running(BaseModel):
    """A server that runs, and where its things are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """Where the user interface and the API are."""
    folder: Path
    """Holds the database, the credentials and the logs."""
    pid: int
    """The process that keeps the server."""
    started: str
    """When that process began, in its system's words: another process with this number isn't it."""
    redis_url: str | None = None
    """The Redis that was named, if one was."""
    new_owner: bool = False
    """Nobody was shown the owner's password and key before this start."""

    @property
    def credentials_file(self) -> Path:
        """The owner's password and API key."""
        return self.folder / FILE

    @property
    def database_file(self) -> Path:
        """SQLite: everything that people did."""
        return self.folder / DATABASE

    @property
    def logs(self) -> Path:
        """A folder with a log for each process."""
        return self.folder / LOGS

    def credentials(self) -> Credentials:
        """Return the owner's name, password and key.

        Raises:
            ReviewError: they can't be read.
        """
        return read_credentials(self.folder)


def default_folder() -> Path:
    """Return where a server keeps its data: STAIRDATA_HOME/argilla, else under the user's data folder."""
    home = os.environ.get("STAIRDATA_HOME")
    if home:
        return Path(home) / "argilla"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "stairdata" / "argilla"


def find(folder: Path | None = None) -> Running | None:
    """Return the server that runs in a folder, or None.

    The lock decides, not the file: what a killed server left behind is not taken for a server.
    """
    folder = (folder or default_folder()).absolute()
    if not _is_locked(folder):
        return None
    try:
        return Running.model_validate_json((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None  # it is just starting, or just ending


def start(
    folder: Path | None = None,
    port: int | None = None,
    redis_url: str | None = None,
    on_progress: OnProgress | None = None,
) -> Running:
    """Start a server in the background, or return the one that runs already.

    Args:
        folder: for the database, the credentials and the logs; default: `default_folder()`.
        port: on 127.0.0.1; default: 6900, or a free one if that is taken. 0 takes a free one.
        redis_url: use this Redis instead of one of our own.
        on_progress: called with a line now and then.

    Raises:
        ReviewError: it can't be started; the message says why.
    """
    folder = (folder or default_folder()).absolute()
    report = on_progress or (lambda _: None)
    found = find(folder)
    if found is not None and is_healthy(found):
        return found
    ensure_environment(report)
    make_folder(folder)
    report("starting Argilla's server")
    command = [sys.executable, "-P", "-m", "stairdata_review.keeper", "--folder", str(folder)]
    command += [] if port is None else ["--port", str(port)]
    environment = {**os.environ, **({"STAIRDATA_REDIS_URL": redis_url} if redis_url else {})}
    log = folder / LOGS / "keeper.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    return _wait_until_found(folder, process, log)


def _wait_until_found(folder: Path, process: subprocess.Popen[bytes], log: Path) -> Running:
    """Wait for the keeper's word, as long as it lives; one that finds another at work leaves the floor to it."""
    deadline = time.monotonic() + BUSY_PATIENCE
    while True:
        found = find(folder)
        if process.poll() == ANOTHER_RUNS and time.monotonic() > deadline:
            if found is not None:
                found.credentials()  # says what is wrong with them
            raise ReviewError(
                f"a server holds {str(folder)!r} and does not answer; end it with `stairdata review stop`"
            )
        if found is not None and is_healthy(found):
            return found.model_copy(update={"new_owner": found.new_owner and found.pid == process.pid})
        status = wait_for(process, POLL)
        if status not in {None, ANOTHER_RUNS} or (status == ANOTHER_RUNS and not _is_locked(folder)):
            raise ReviewError(
                _last_error(log) or f"the server ended with status {status}; its logs: {str(log.parent)!r}"
            )


def stop(folder: Path | None = None) -> bool:
    """End the server of a folder and wait until it is gone; false if none runs.

    Raises:
        ReviewError: it doesn't end, or its process can't be told from another.
    """
    folder = (folder or default_folder()).absolute()
    deadline = time.monotonic() + STOP_TIMEOUT
    signalled = False
    while _is_locked(folder):
        found = find(folder)
        if found is not None and not signalled:
            if started_at(found.pid) != found.started:
                raise ReviewError(
                    f"the server in {str(folder)!r} is kept by a process that can't be found (on another machine?): "
                    "end it there"
                )
            os.kill(found.pid, signal.SIGTERM)
            signalled = True
        if time.monotonic() > deadline:
            raise ReviewError(f"the server in {str(folder)!r} did not end; its logs: {str(folder / LOGS)!r}")
        time.sleep(POLL)
    (folder / STATE).unlink(missing_ok=True)
    return signalled


def is_healthy(running: Running) -> bool:
    """Tell whether the server answers, and knows the owner's key: another program on the port does not pass for it."""
    try:
        key = running.credentials().api_key
        answer = get_json(f"{running.url}/api/v1/me", key)
    except (ReviewError, OSError, ValueError):
        return False
    return isinstance(answer, dict) and answer.get("role") == "owner"


def get_json(url: str, api_key: str) -> Any:
    """Ask a server on this machine."""
    request = urllib.request.Request(url, headers={"X-Argilla-Api-Key": api_key})  # noqa: S310 (ours)
    # no proxy between a machine and itself
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=REQUEST_TIMEOUT) as answer:
        return json.load(answer)


def make_folder(folder: Path) -> None:
    """Make a server's folder, for this user alone.

    Raises:
        ReviewError: it can't be made or written.
    """
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
        elif folder.stat().st_mode & 0o077 and not (folder / DATABASE).exists():
            if any(folder.iterdir()):
                raise ReviewError(
                    f"the folder {str(folder)!r} holds other things and is open to other users; name an empty one, or "
                    "one of your own, with --folder"
                )
            folder.chmod(0o700)
        (folder / LOGS).mkdir(exist_ok=True)
        write_atomic(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise ReviewError(
            f"the server's folder {str(folder)!r} can't be used: {error.strerror}; name another with --folder"
        ) from error


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold the lock of a server's folder, or yield false because another keeper does."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=HOLD_PATIENCE, poll_interval=0.02)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        (folder / STATE).unlink(missing_ok=True)
        lock.release()


def _is_locked(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=PROBE_PATIENCE, poll_interval=0.02):
            return False
    except Timeout:
        return True
    except OSError as error:
        raise ReviewError(f"the server's folder {str(folder)!r} can't be used: {error.strerror}") from error


def _last_error(log: Path) -> str | None:
    line = last_line(log)
    if line.startswith("error: "):
        return line.removeprefix("error: ")
    return f"the server said {quote(line, 300)}" if line else None
