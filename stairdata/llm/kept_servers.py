"""Servers that are started here: each ends with the block that opened it, or runs on for whoever needs it next.

A server whose turn comes soon may be started early, beside work that asks none. The invariant: nobody is given a
server, and none is started, while one that was started early has not answered yet or failed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stairdata.llm.server_times import server_start
from stairdata_schemas.aliases import WaitProgress

if TYPE_CHECKING:
    from stairdata.llm.vllm_server import ManagedServer, ServerOptions

POLL = 0.5
_log = logging.getLogger("stairdata")


class EarlyStart:
    """The start of a server in a thread of its own, from now on.

    Args:
        server: that was not started yet.
    """

    def __init__(self, server: ManagedServer) -> None:
        self.server = server
        self._error: Exception | None = None
        # no thread to wait for when the interpreter ends: the server ends with this process, however that ends
        self._thread = threading.Thread(target=self._start, name="early start of a server", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            self.server.start()
        except Exception as error:  # noqa: BLE001 - whoever needs the server is told
            self._error = error

    def wait(self, on_progress: WaitProgress | None) -> bool:
        """Wait until it answers or has failed, which is told; return whether it answers."""
        began = time.monotonic()
        while self._thread.is_alive():
            if on_progress is not None:
                on_progress(f"starting the server of {self.server.served_name}", time.monotonic() - began)
            self._thread.join(POLL)
        if self._error is not None:
            _log.warning("warning: a server that was started early is started again: %s", self._error)
        return self._error is None

    def stop(self) -> None:
        """End the server, or give its start up; nothing is left running."""
        self.server.stop()
        self._thread.join()


@dataclass(slots=True)
class KeptServers:
    """Servers that `keeping_servers` will end."""

    running: list[ManagedServer] = field(default_factory=list)
    early: EarlyStart | None = None


_KEPT: ContextVar[KeptServers | None] = ContextVar("kept", default=None)
"""None where each server is ended by who opened it."""


@asynccontextmanager
async def running_server(options: ServerOptions, on_progress: WaitProgress | None) -> AsyncIterator[ManagedServer]:
    """Give a server that answers: one that was kept or started early, or a new one, which is kept where servers are.

    Args:
        options: what to serve.
        on_progress: told while it starts.

    Raises:
        ModelError, ServerError: as `ManagedServer.start` says.
    """
    from stairdata.llm.vllm_server import ManagedServer

    kept = _KEPT.get()
    if kept is not None:
        await _settle(kept, on_progress)
        found = await asyncio.to_thread(_find, kept, options)
        if found is not None:
            yield found
            return
    server = ManagedServer(options)
    try:
        with server_start():
            await asyncio.to_thread(server.start, on_progress)
        if kept is not None:
            kept.running.append(server)
        yield server
    finally:
        if kept is None or server not in kept.running:
            server.stop()


async def _settle(kept: KeptServers, on_progress: WaitProgress | None) -> None:
    """Wait for a server that was started early; one that answers is kept."""
    if kept.early is None:
        return
    early = kept.early
    try:
        with server_start():
            if await asyncio.to_thread(early.wait, on_progress):
                kept.running.append(early.server)
    except BaseException:  # Ctrl-C: the thread would go on waiting
        early.stop()
        raise
    finally:
        kept.early = None


@contextmanager
def keeping_servers() -> Iterator[None]:
    """Let servers that are started inside run on: who opens the same one again does not wait.

    They end with the block, or by `end_servers`.
    """
    kept = KeptServers()
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _end_all(kept)
        _KEPT.reset(token)


def start_early(options: ServerOptions) -> None:
    """Start a server in the background, where servers are kept and this machine has the memory for one more.

    Whoever opens it waits for the rest of its start. A start that fails is told then, and tried once more.

    Args:
        options: as they will be when it is opened.
    """
    from stairdata.llm.vllm_server import ManagedServer, has_memory_for

    kept = _KEPT.get()
    if kept is not None and kept.early is None and not kept.running and has_memory_for(options):
        kept.early = EarlyStart(ManagedServer(options))


def end_servers(*but: str | None) -> None:
    """End the servers that `keeping_servers` lets run on, and give up an early start.

    Args:
        but: the folders or Hub ids of models whose servers run on.
    """
    kept = _KEPT.get()
    if kept is not None:
        _end_all(kept, *but)


def _end_all(kept: KeptServers, *but: str | None) -> None:
    early = kept.early
    if early is not None and early.server.options.model not in but:
        kept.early = None
        early.stop()
    for server in [*kept.running]:
        if server.options.model not in but:
            kept.running.remove(server)
            server.stop()


def _find(kept: KeptServers, options: ServerOptions) -> ManagedServer | None:
    """Return the server that was kept and is what the options would start.

    One that holds more of the GPU's memory than it may now is ended: what it would leave is needed for another model.
    """
    from stairdata.llm.vllm_server import gpu_share

    for server in [*kept.running]:
        if server.is_alive() and replace(server.options, log=options.log, gpu_memory=options.gpu_memory) == options:
            if gpu_share(server.options) <= gpu_share(options):
                return server
            kept.running.remove(server)
            server.stop()
    return None
