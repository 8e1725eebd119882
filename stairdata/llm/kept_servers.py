"""Servers that are started here: each ends with the block that opened it, or runs on for whoever needs it next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

from stairdata.llm.server_times import server_start
from stairdata_schemas.aliases import WaitProgress

if TYPE_CHECKING:
    from stairdata.llm.vllm_server import ManagedServer, ServerOptions

_KEPT: ContextVar[list[ManagedServer] | None] = ContextVar("kept", default=None)
"""Servers that `keeping_servers` will end; None where each is ended by who opened it."""


@asynccontextmanager
async def running_server(options: ServerOptions, on_progress: WaitProgress | None) -> AsyncIterator[ManagedServer]:
    """Give a server that answers: one that was kept, or a new one, which is kept where servers are.

    Args:
        options: what to serve.
        on_progress: told while it starts.

    Raises:
        ModelError, ServerError: as `ManagedServer.start` says.
    """
    from stairdata.llm.vllm_server import ManagedServer

    kept = _KEPT.get()
    found = await asyncio.to_thread(_find, options)
    if found is not None:
        yield found
        return
    server = ManagedServer(options)
    try:
        with server_start():
            await asyncio.to_thread(server.start, on_progress)
        if kept is not None:
            kept.append(server)
        yield server
    finally:
        if server not in (kept or ()):
            server.stop()


@contextmanager
def keeping_servers() -> Iterator[None]:
    """Let servers that are started inside run on: who opens the same one again does not wait.

    They end with the block, or by `end_servers`.
    """
    kept: list[ManagedServer] = []
    token = _KEPT.set(kept)
    try:
        yield
    finally:
        _KEPT.reset(token)
        for server in kept:
            server.stop()


def end_servers(*but: str | None) -> None:
    """End the servers that `keeping_servers` lets run on.

    Args:
        but: the folders or Hub ids of models whose servers run on.
    """
    for server in list(_KEPT.get() or ()):
        if server.options.model not in but:
            _end(server)


def _find(options: ServerOptions) -> ManagedServer | None:
    """Return the server that was kept and is what the options would start.

    One that holds more of the GPU's memory than it may now is ended: what it would leave is needed for another model.
    """
    from stairdata.llm.vllm_server import gpu_share

    for server in list(_KEPT.get() or ()):
        if server.is_alive() and _is_same(server.options, options):
            if gpu_share(server.options) <= gpu_share(options):
                return server
            _end(server)
    return None


def _is_same(one: ServerOptions, other: ServerOptions) -> bool:
    """Tell whether two servers are the same one but for log and memory."""
    return replace(one, log=other.log, gpu_memory=other.gpu_memory) == other


def _end(server: ManagedServer) -> None:
    kept = _KEPT.get()
    if kept is not None:
        kept.remove(server)
    server.stop()
