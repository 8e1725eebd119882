"""The server's process: its socket, its key, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import uvicorn

from stairdata.llm.in_server.guard import AsgiApp
from stairdata.serving.app import Service, application
from stairdata_schemas.errors import ServerError, UsageError, quote
from stairdata_schemas.processes import HOST
from stairdata_schemas.secrets.redaction import hold
from stairdata_schemas.secrets.shapes import looks_like_key

LEAST_KEY = 16
"""Characters of a key that is given."""
MOST_CONNECTIONS = 64
"""On top of those that searches have; more are answered 503."""
LAST_WORDS = 1
"""Seconds that connections have to end, when the server does."""
POLL = 0.01
_KEY = re.compile(r"[!-~]+")


def find_key(variable: str | None) -> str:
    """Return the key in an environment variable, or make one.

    Raises:
        UsageError: the variable holds none, or one that can be guessed.
    """
    key = secrets.token_urlsafe(32) if variable is None else _key_in(variable)
    hold(key)
    return key


def _key_in(variable: str) -> str:
    if looks_like_key(variable):
        raise UsageError("--api-key-env takes the name of an environment variable, and this looks like a key")
    key = os.environ.get(variable, "")
    if not key:
        raise UsageError(f"--api-key-env: the environment has no variable {quote(variable)}, or an empty one")
    if len(key) < LEAST_KEY or _KEY.fullmatch(key) is None or len(set(key)) < LEAST_KEY // 2:
        raise UsageError(
            f"--api-key-env: the key in {quote(variable)} has to have at least {LEAST_KEY} printable characters of "
            f"ASCII without spaces, {LEAST_KEY // 2} of them different; make one: openssl rand -hex 32"
        )
    return key


def take_port(port: int) -> socket.socket:
    """Take a port of 127.0.0.1 before anything that takes long; who connects waits until then.

    Args:
        port: 0 takes a free one.

    Raises:
        ServerError: somebody else has it, or it needs rights that this process lacks.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ServerError(
            f"port {port} can't be used: {error.strerror}; end the program that has it, or choose another one with "
            "--port (0 takes a free one)"
        ) from error
    return listener


def base_url(listener: socket.socket) -> str:
    """Return the address for OpenAI clients."""
    return f"http://{HOST}:{listener.getsockname()[1]}/v1"


async def serve_until_ended(
    opened: AbstractAsyncContextManager[Service], key: str, listener: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Open a service, which may start model servers, and answer until a signal; what was started then is ended.

    Args:
        opened: the service.
        key: that clients send.
        listener: see `take_port`; closed in the end.
        on_ready: called when questions are answered.

    Raises:
        ServerError: a model can't be started, or is gone.
        SystemExit: SIGTERM.
    """
    with contextlib.closing(listener), _ends_on_sigterm():
        async with opened as service, running(application(service, key), listener, service.limits.in_flight):
            on_ready()
            await _watched(service)


@asynccontextmanager
async def running(app: AsgiApp, listener: socket.socket, in_flight: int) -> AsyncIterator[None]:
    """Answer requests as long as the context is open."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",  # what a client does wrong is no message of ours; errors of our own are logged by us
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=in_flight + MOST_CONNECTIONS,
        timeout_graceful_shutdown=LAST_WORDS,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            await asyncio.wait({serving}, timeout=POLL)
            if serving.done():
                serving.result()
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)


class _Server(uvicorn.Server):
    """Leaves signals to us: models have to be ended, too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _watched(service: Service) -> None:
    """Wait until a model is gone."""
    watching = asyncio.ensure_future(service.searcher.watch())
    failing = asyncio.ensure_future(service.failed.wait())
    try:
        await asyncio.wait({watching, failing}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        if service.failure is not None:
            raise service.failure
    finally:
        watching.cancel()
        failing.cancel()
        await asyncio.gather(watching, failing, return_exceptions=True)


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the task as Ctrl-C does, and then the process with the status that shells know."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    ended: list[int] = []

    def end() -> None:
        ended.append(signal.SIGTERM)
        task.cancel()

    try:
        loop.add_signal_handler(signal.SIGTERM, end)
    except (NotImplementedError, ValueError, RuntimeError):  # not the main thread, or no Unix
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        if not ended:
            raise
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
