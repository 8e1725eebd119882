"""Ctrl-C during a run: requests in flight are still answered, for some seconds."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from stairdata.llm.budget import Budget

DRAIN_SECONDS = 6.0  # what Ctrl-C grants to requests in flight; ending a server of ours takes 3 s more


@contextmanager
def interruptible(budget: Budget) -> Iterator[None]:
    """Let Ctrl-C stop the budget first, and cut off what is still in flight some seconds later, or when asked again."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    cuts: list[asyncio.TimerHandle] = []

    def interrupt() -> None:
        if budget.reason is not None:
            task.cancel()
        budget.stop(KeyboardInterrupt())
        cuts.append(loop.call_later(DRAIN_SECONDS, task.cancel))

    try:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    except (NotImplementedError, ValueError, RuntimeError):  # not the main thread, or no Unix
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        if not isinstance(budget.reason, KeyboardInterrupt):
            raise
        task.uncancel()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for cut in cuts:
            cut.cancel()
