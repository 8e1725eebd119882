"""A server in the background: started with one call, ended with another.

It is kept by a process of its own, which runs `server_processes`; while that process lives it holds the lock of the
server's folder, so that a second start finds the first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from stairdata_review.server import server_processes
from stairdata_review.server.environment import OnMessage, ensure_environment
from stairdata_review.server.folder import LOGS, STATE, default_folder, is_held, make_folder
from stairdata_review.server.running_server import RunningServer, find_server, is_healthy
from stairdata_review.server.server_processes import ANOTHER_RUNS, POLL, REDIS_VARIABLE, START_TIMEOUT
from stairdata_schemas.errors import ReviewError, quote
from stairdata_schemas.processes import last_line, started_at, wait_for

STOP_TIMEOUT = 40.0
BUSY_PATIENCE = START_TIMEOUT + 20  # another process may be starting the server


def start_server(
    folder: Path | None = None,
    port: int | None = None,
    redis_url: str | None = None,
    on_progress: OnMessage | None = None,
) -> RunningServer:
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
    found = find_server(folder)
    if found is not None and is_healthy(found):
        return found
    ensure_environment(report)
    make_folder(folder)
    report("starting Argilla's server")
    command = [sys.executable, "-P", "-m", server_processes.__name__, "--folder", str(folder)]
    command += [] if port is None else ["--port", str(port)]
    environment = {**os.environ, **({REDIS_VARIABLE: redis_url} if redis_url else {})}
    log = folder / LOGS / "background.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    return _wait_until_found(folder, process, log)


def _wait_until_found(folder: Path, process: subprocess.Popen[bytes], log: Path) -> RunningServer:
    """Wait for the server that a process starts; where that process ends because another starts one, for that one."""
    deadline = time.monotonic() + BUSY_PATIENCE
    while True:
        found = find_server(folder)
        if process.poll() == ANOTHER_RUNS and time.monotonic() > deadline:
            if found is not None:
                found.credentials()  # says what is wrong with them
            raise ReviewError(
                f"a server holds {str(folder)!r} and does not answer; end it with `stairdata review stop`"
            )
        if found is not None and is_healthy(found):
            return found.model_copy(update={"new_owner": found.new_owner and found.pid == process.pid})
        status = wait_for(process, POLL)
        if status not in {None, ANOTHER_RUNS} or (status == ANOTHER_RUNS and not is_held(folder)):
            raise ReviewError(
                _last_error(log) or f"the server ended with status {status}; its logs: {str(log.parent)!r}"
            )


def stop_server(folder: Path | None = None) -> bool:
    """End the server of a folder and wait until it is gone; false if none runs.

    Raises:
        ReviewError: it doesn't end, or its process can't be told from another.
    """
    folder = (folder or default_folder()).absolute()
    deadline = time.monotonic() + STOP_TIMEOUT
    signalled = False
    while is_held(folder):
        found = find_server(folder)
        if found is not None and not signalled:
            if started_at(found.pid) != found.started:
                raise ReviewError(
                    f"the server in {str(folder)!r} is managed by a process that can't be found (on another machine?): "
                    "end it there"
                )
            os.kill(found.pid, signal.SIGTERM)
            signalled = True
        if time.monotonic() > deadline:
            raise ReviewError(f"the server in {str(folder)!r} did not end; its logs: {str(folder / LOGS)!r}")
        time.sleep(POLL)
    (folder / STATE).unlink(missing_ok=True)
    return signalled


def _last_error(log: Path) -> str | None:
    line = last_line(log)
    if line.startswith("error: "):
        return line.removeprefix("error: ")
    return f"the server said {quote(line, 300)}" if line else None
