"""Which servers run on, and for whom; nothing is started here but words in a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from stairdata.llm import vllm_server
from stairdata.llm.kept_servers import end_servers, keeping_servers, running_server
from stairdata.llm.vllm_server import ManagedServer, ServerOptions
from stairdata.runs.event_loop import run_to_end

Use = Callable[..., None]


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was started and stopped, in order."""
    events: list[str] = []
    alive: set[ManagedServer] = set()

    def start(self: ManagedServer, _: object) -> None:
        events.append(f"start {self.options.model}")
        alive.add(self)

    def stop(self: ManagedServer) -> None:
        if self in alive:
            alive.remove(self)
            events.append(f"stop {self.options.model}")

    monkeypatch.setattr(ManagedServer, "start", start)
    monkeypatch.setattr(ManagedServer, "stop", stop)
    monkeypatch.setattr(ManagedServer, "is_alive", lambda self: self in alive)
    return events


def use(*models: str, gpu_memory: float | None = None) -> None:
    """Open the servers of some models at the same time, as a build does."""

    async def opened(left: tuple[str, ...]) -> None:
        if left:
            options = ServerOptions(left[0], Path(f"{len(left)}.log"), gpu_memory=gpu_memory)
            async with running_server(options, None):
                await opened(left[1:])

    run_to_end(opened(models))


def test_a_server_ends_with_who_opened_it_unless_servers_are_kept(happened: list[str]) -> None:
    use("actor")
    use("actor")
    assert happened == ["start actor", "stop actor"] * 2


def test_a_kept_server_is_started_once_until_it_is_ended(happened: list[str]) -> None:
    with keeping_servers():
        use("actor")
        use("actor", "judge")
        end_servers("actor", "judge")
        use("judge", "actor")
        end_servers("actor", None)
        use("actor")
        assert happened == ["start actor", "start judge", "stop judge"]
        end_servers()
        use("actor")
    assert happened[3:] == ["stop actor", "start actor", "stop actor"]


def test_servers_are_kept_in_a_notebook_too(happened: list[str]) -> None:
    async def cell() -> None:
        with keeping_servers():
            use("actor")
            use("actor")

    asyncio.run(cell())
    assert happened == ["start actor", "stop actor"]


@pytest.mark.parametrize(("is_cpu", "starts"), [(True, 1), (False, 2)])
def test_a_server_that_holds_too_much_of_a_gpu_makes_room(
    happened: list[str], monkeypatch: pytest.MonkeyPatch, is_cpu: bool, starts: int
) -> None:
    monkeypatch.setattr(vllm_server, "_is_cpu_build", lambda: is_cpu)
    with keeping_servers():
        use("actor")
        use("actor", gpu_memory=0.55)  # a reward model is loaded beside it
        use("actor")
    assert happened == ["start actor", "stop actor"] * starts
