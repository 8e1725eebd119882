"""Which servers run on, which start early, and for whom; nothing is started here but words in a list."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from stairdata.llm import vllm_server
from stairdata.llm.kept_servers import end_servers, keeping_servers, running_server, start_early
from stairdata.llm.vllm_server import ManagedServer, ServerOptions
from stairdata.runs.event_loop import run_to_end
from stairdata_schemas.errors import ServerError


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


class Starting:
    """A start under way, which ends as the test says, or because the server is stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happened: list[str]) -> None:
        self.end, self.error = threading.Event(), ""
        start, stop = ManagedServer.start, ManagedServer.stop

        def slow(server: ManagedServer, on_progress: None) -> None:
            happened.append(f"begin {server.options.model}")
            assert self.end.wait(30)
            if self.error:
                error, self.error = self.error, ""
                raise ServerError(error)
            start(server, on_progress)

        def stopped(server: ManagedServer) -> None:
            if not self.end.is_set():
                self.error = "the server was stopped while it started"
                self.end.set()
            stop(server)

        monkeypatch.setattr(ManagedServer, "start", lambda server, on_progress=None: slow(server, on_progress))
        monkeypatch.setattr(ManagedServer, "stop", stopped)
        monkeypatch.setattr(vllm_server, "has_memory_for", lambda _: True)


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch, happened: list[str]) -> Starting:
    return Starting(monkeypatch, happened)


def options_of(model: str) -> ServerOptions:
    return ServerOptions(model, Path("early.log"))


def test_an_early_start_is_waited_for_and_not_repeated(happened: list[str], starting: Starting) -> None:
    with keeping_servers():
        start_early(options_of("actor"))
        start_early(options_of("actor"))
        end_servers("actor")
        starting.end.set()
        use("judge")
        use("actor")
    assert happened == ["begin actor", "start actor", "begin judge", "start judge", "stop actor", "stop judge"]


def test_an_early_start_that_fails_costs_nobody_anything(
    happened: list[str], starting: Starting, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "stairdata")
    starting.error = "no room"
    with keeping_servers():
        start_early(options_of("actor"))
        starting.end.set()
        use("actor")
    assert happened == ["begin actor", "begin actor", "start actor", "stop actor"]
    assert caplog.messages == ["warning: a server that was started early is started again: no room"]


def interrupted(while_: str) -> None:
    """Start a server early, and end with an interrupt."""

    async def cancelled() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def cancel(*_: object) -> None:
            loop.call_soon_threadsafe(task.cancel)

        async with running_server(options_of("actor"), cancel):
            raise AssertionError

    with keeping_servers():
        start_early(options_of("actor"))
        if while_ == "a training":
            end_servers("another")
        if while_ == "it is waited for":
            asyncio.run(cancelled())
        raise KeyboardInterrupt


@pytest.mark.parametrize("while_", ["a training", "prompts are made", "it is waited for"])
def test_an_early_start_is_given_up(happened: list[str], starting: Starting, while_: str) -> None:
    threads = threading.active_count()
    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        interrupted(while_)
    assert starting.end.is_set()
    assert happened == ["begin actor"]
    assert threading.active_count() == threads


def test_nothing_starts_early_without_memory_or_where_no_server_is_kept(
    happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_early(options_of("actor"))
    monkeypatch.setattr(vllm_server, "has_memory_for", lambda _: False)
    with keeping_servers():
        start_early(options_of("actor"))
    assert happened == []


@pytest.mark.parametrize(
    ("weights", "gib_free", "is_cpu", "fits"),
    [(2, 20, True, True), (2, 11, True, False), (0, 1000, True, False), (2, None, True, False), (0, None, False, True)],
)
def test_a_server_needs_twice_its_weights_and_cache(
    weights: int, gib_free: int | None, is_cpu: bool, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "_is_cpu_build", lambda: is_cpu)
    monkeypatch.setattr(vllm_server, "_available_memory", lambda: gib_free and gib_free * 2**30)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    if weights:
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(weights * 2**30)  # a hole, which takes up no disk
    assert vllm_server.has_memory_for(options_of(str(tmp_path))) is fits


def test_the_memory_of_this_machine_is_known() -> None:
    found = vllm_server._available_memory()
    assert found is None or 0 < found < 2**60
