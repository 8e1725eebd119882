"""Coroutines run to their end, with and without an event loop around them."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from stairdata.runs.event_loop import run_to_end


async def thread_or_error(error: Exception | None) -> int:
    await asyncio.sleep(0)
    if error is not None:
        raise error
    return threading.get_ident()


def test_without_a_loop_it_runs_here() -> None:
    assert run_to_end(thread_or_error(None)) == threading.get_ident()
    with pytest.raises(ValueError, match="mine"):
        run_to_end(thread_or_error(ValueError("mine")))


def test_in_a_notebook_it_has_a_thread() -> None:
    async def cell() -> int:
        with pytest.raises(ValueError, match="mine"):
            run_to_end(thread_or_error(ValueError("mine")))
        return run_to_end(thread_or_error(None))

    assert asyncio.run(cell()) != threading.get_ident()


def test_an_interrupt_of_a_notebook_cancels_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    def interrupted(_: Future[None]) -> None:
        assert begun.wait(30)
        raise KeyboardInterrupt

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            run_to_end(work())

    monkeypatch.setattr(Future, "result", interrupted)
    asyncio.run(cell())
    assert ended == ["cancelled"]


@pytest.mark.parametrize("is_there", [False, True])
def test_the_loop_is_uvloops_where_that_is_installed(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def stand_in() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[-1]

    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop=stand_in) if is_there else None)
    run_to_end(thread_or_error(None))
    assert len(made) == is_there
