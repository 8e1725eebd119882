"""Units on a Ray cluster: one replica of the work for each server or each GPU.

Ray Data hands out the units, restarts replicas that die and gives their units out again. A unit's row depends on
nothing but its seeds and its server's answers, so the rows are those of the local executor. Journals of what is under
way are in the build's work folder where a replica sees it (one machine, a shared disk), else in a temporary folder of
its own.

Ray ends the process, in C++ and past all `finally`, once a cluster's head has not answered for 60 s. So the head is
watched here, and the run ends in an error of ours before that.

Limits on tokens and cost are checked here as units come in: what is in flight then is over them. They are exact with
the local executor alone.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from stairdata.llm.budget import Budget, Expense, StoppedError
from stairdata.llm.endpoint_pool import EndpointUse, sum_uses
from stairdata.llm.outcomes import JudgeFailedError, Outcome, RequestFailedError
from stairdata.recipe import Recipe
from stairdata.recipe.section import Concurrency
from stairdata.runs.event_loop import new_loop
from stairdata.runs.units import Unit, UnitFailedError, UnitResult, WorkContext, Workload
from stairdata_schemas.errors import ServerError, StairDataError, UsageError, quote

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure

T = TypeVar("T")
PACKAGE = "stairdata"
UNITS_IN_FLIGHT = 64  # of a replica where concurrency is auto: a window's first size
HANDED_OUT = 2  # units handed to a replica, as a multiple of those it works on at a time: it never waits for Ray
CPUS = 0.1  # a replica mostly waits for its server
HEAD_SECONDS = 2.0  # between two looks at the head, and for it to accept a connection
HEAD_MISSES = 5  # looks in a row at a head that is gone: some 10 s if it refuses, 20 s if it is silent
REACH_SECONDS = 10.0  # for a cluster to accept a connection
LEAVE_SECONDS = 15.0  # for Ray to shut down without a head: 5 if that refuses, for ever if it is silent


class HeadGoneError(ServerError):
    """The head of the Ray cluster is gone."""


class ServerAssignment:
    """Gives each replica a server of its own; one that was restarted gets its old one."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, actor_id: str) -> int:
        """Return the ordinal of the server of a Ray actor."""
        return self._taken.setdefault(actor_id, len(self._taken))


class KeptJournals:
    """Journals of units that have come in, removed when as many more have as can be under way.

    A replica that dies right after it handed a unit over is asked for the same unit again: it then finds its answers.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._paths: deque[Path] = deque()

    def add(self, path: Path) -> None:
        """Keep the newest one, remove the oldest."""
        self._paths.append(path)
        if len(self._paths) > self._most:
            self._paths.popleft().unlink(missing_ok=True)

    def __enter__(self) -> KeptJournals:
        return self

    def __exit__(self, *_: object) -> None:
        while self._paths:
            self._paths.popleft().unlink(missing_ok=True)


class ReplicaWorker:
    """An actor of Ray Data: works on a unit for each call, many at a time on one event loop."""

    def __init__(self, workload: Workload, servers: Any) -> None:
        import ray

        folder = workload.folder if workload.folder.is_dir() else Path(tempfile.mkdtemp(prefix="stairdata-"))
        self._workload = replace(workload, folder=folder)
        if workload.urls:
            number = ray.get(servers.take.remote(ray.get_runtime_context().get_actor_id()))
            home = number % len(workload.urls)
            # the others' servers are there for when its own is gone
            self._workload = self._workload.at(workload.urls[home:] + workload.urls[:home], is_spread=False)
        self._budget = Budget(prices=workload.recipe.prices)
        self._reported = Expense()
        self._reported_uses: dict[str, EndpointUse] = {}
        self._stack = AsyncExitStack()
        self._loop = (new_loop() or asyncio.new_event_loop)()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._context: WorkContext | None = None
        self._failure = ""
        try:
            self._context = self._wait_for(self._open())
        except StairDataError as error:  # told with each unit: an actor that can't be made would be made for ever
            self._failure = str(error)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Work on one unit.

        Args:
            item: `unit`, as JSON.

        Returns:
            `key`, and `result` as JSON: the row, or why there is none, and what was spent, and done by each server,
            since the last result.
        """
        unit = Unit(*json.loads(item["unit"]))
        return {"key": unit.key, "result": json.dumps(self._wait_for(self._work(unit)))}

    async def _open(self) -> WorkContext:
        return await self._stack.enter_async_context(self._workload.open(self._budget, lambda _what, _seconds: None))

    async def _work(self, unit: Unit) -> dict[str, Any]:
        if self._context is None:
            return {"gone": self._failure, "spent": [0, 0.0], "uses": {}}
        result: dict[str, Any]
        try:
            done = await self._context.work(unit)
            result = {"done": [*done._replace(leftover=str(done.leftover) if done.leftover else None)]}  # type: ignore[arg-type]
        except RequestFailedError as error:
            result = {"failed": [error.outcomes, error.detail, isinstance(error, JudgeFailedError), error.before]}
        except UnitFailedError as error:
            result = {"unfit": [error.rule, error.raw]}
        except ServerError as error:
            result = {"gone": str(error)}
        spent = self._budget.spent
        tokens, cost = spent.tokens - self._reported.tokens, spent.cost - self._reported.cost
        self._reported = spent
        uses = sum_uses(pool.uses() for pool in self._context.pools)
        new = {url: use.minus(self._reported_uses.get(url, EndpointUse())) for url, use in uses.items()}
        self._reported_uses = uses
        return result | {"spent": [tokens, cost], "uses": new}

    def _wait_for(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class RayExecutor:
    """Works on units by replicas on a Ray cluster.

    Args:
        workload: opened by each replica.
        budget: charged with what replicas report; stops the run when it is spent.
        concurrency: units in flight at most, of each replica.
        address: of a cluster; None starts one here for the duration.
    """

    context = None  # what works is elsewhere

    def __init__(self, workload: Workload, budget: Budget, concurrency: Concurrency, address: str | None) -> None:
        # Replicas may lack the training package, whose sections the whole recipe has.
        sections = workload.recipe.model_dump(mode="json", include=set(Recipe.model_fields))
        self._workload = replace(
            workload.for_replicas(), recipe=Recipe.model_validate(sections), folder=workload.folder.resolve()
        )
        self._budget = budget
        self._in_flight = UNITS_IN_FLIGHT if concurrency == "auto" else concurrency
        self._address = address
        self.uses: dict[str, EndpointUse] = {url: EndpointUse() for url in workload.urls}

    async def run(self, units: Sequence[Unit]) -> AsyncGenerator[tuple[Unit, UnitResult | UnitFailure]]:
        """Work on units.

        Raises:
            UsageError: Ray isn't installed, or the work can't be sent to other processes.
            ServerError: all servers are gone, or the cluster's head is.
        """
        by_key = {unit.key: unit for unit in units}
        gone: list[str] = []
        with _cluster(self._address):
            self._check_sendable()
            replicas, gpus = self._size()
            results = _from_thread(lambda: self._stream(units, replicas, gpus), watch_head(_head_address()))
            with KeptJournals(HANDED_OUT * self._in_flight * replicas) as journals:
                async with aclosing(results):
                    async for key, result in results:
                        self._budget.charge(Expense(*result["spent"]))
                        new = {url: EndpointUse(*use) for url, use in result["uses"].items()}
                        self.uses = sum_uses([self.uses, new])
                        if "gone" in result:
                            gone.append(result["gone"])
                        else:
                            end = read_result(result)
                            # The journal is removed here and later than usual: see `KeptJournals`.
                            yield by_key[key], end._replace(leftover=None) if isinstance(end, UnitResult) else end
                            if isinstance(end, UnitResult) and end.leftover is not None:
                                journals.add(end.leftover)
                        if self._is_over():
                            return
        if gone:
            raise ServerError(gone[0])

    def _is_over(self) -> bool:
        try:
            self._budget.check_spent()
        except StoppedError:
            return True
        return self._budget.reason is not None

    def _check_sendable(self) -> None:
        import ray.cloudpickle

        try:
            ray.cloudpickle.dumps(self._workload)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever the object raises that can't be copied
            raise UsageError(
                f"what this build works with can't be sent to replicas on Ray ({quote(str(error))}); leave --executor "
                "and --address out, --endpoints works in this process"
            ) from error

    def _size(self) -> tuple[int, int]:
        """Return the number of replicas, and the GPUs of each."""
        import ray

        if self._workload.urls:
            return len(self._workload.urls), 0
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(resources.get("GPU", 0))
        return (gpus, 1) if gpus else (1, 0)

    def _stream(self, units: Sequence[Unit], replicas: int, gpus: int) -> Iterator[tuple[str, dict[str, Any]]]:
        import ray
        import ray.data

        items = [{"unit": json.dumps(unit)} for unit in units]
        servers = ray.remote(ServerAssignment).options(num_cpus=0).remote()
        results = ray.data.from_items(items, override_num_blocks=len(items)).map(
            ReplicaWorker,  # type: ignore[arg-type]  # Ray makes it, with the arguments below
            fn_constructor_args=(self._workload, servers),
            compute=ray.data.ActorPoolStrategy(
                size=replicas,
                max_tasks_in_flight_per_actor=HANDED_OUT * self._in_flight,
                max_concurrent_calls_per_actor=self._in_flight,
                enable_true_multi_threading=True,
            ),
            num_cpus=None if gpus else CPUS,
            num_gpus=gpus or None,
        )
        for row in results.iter_rows():
            yield str(row["key"]), json.loads(row["result"])


def read_result(result: dict[str, Any]) -> UnitResult | UnitFailure:
    """Return what a replica reports of a unit that has ended."""
    if "done" in result:
        row, counts, outcomes, leftover, usage = result["done"]
        return UnitResult(row, counts, outcomes, Path(leftover) if leftover else None, usage)
    if "unfit" in result:
        return UnitFailedError(*result["unfit"])
    outcomes, detail, is_judge, before = result["failed"]
    error = (JudgeFailedError if is_judge else RequestFailedError)([Outcome(name) for name in outcomes], detail)
    error.before = before
    return error


async def watch_head(address: str, seconds: float = HEAD_SECONDS) -> NoReturn:
    """Wait until a cluster's head no longer accepts connections.

    Args:
        address: `host:port` of the head's GCS. One that can't be reached from here to begin with, as behind a proxy,
            is not taken for gone.
        seconds: between two looks, and at most for one.

    Raises:
        HeadGoneError: it is.
    """
    missed, seen = 0, False
    while missed < HEAD_MISSES:
        if await asyncio.to_thread(_accepts, address, seconds):
            missed, seen = 0, True
        elif seen:
            missed += 1
        await asyncio.sleep(seconds)
    raise HeadGoneError(
        f"the head of the Ray cluster at {quote(address)} is gone; finished work is kept: start the cluster again, "
        "unless this command had started it, and run the same command again"
    )


def check_cluster(address: str | None) -> None:
    """Check that a cluster is there and that each of its machines has this package in this release.

    Args:
        address: as for `RayExecutor`; None needs nothing but Ray, since the cluster is this installation's own.

    Raises:
        UsageError: Ray isn't installed, or a machine of the cluster lacks the package or has another release.
        ServerError: no cluster answers.
    """
    if address is None:
        _import_ray()
        return
    with _cluster(address):
        ours = version(PACKAGE)
        for node, theirs in _installed().items():
            if theirs != ours:
                has = f"has {PACKAGE} {theirs}" if theirs else f"lacks {PACKAGE}"
                raise UsageError(
                    f"the machine {node} of the Ray cluster at {quote(address)} {has}, and this one has {ours}; "
                    f"install it there, in the environment that `ray start` runs in: "
                    f"pip install '{PACKAGE}[ray]=={ours}'"
                )


def _installed() -> dict[str, str | None]:
    """Return the release of this package on each machine of the cluster, None where it is not installed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            # a function of Python's own, since ours can't be read where they are not installed
            look = ray.remote(version).options(num_cpus=0, scheduling_strategy=there)
            asked[node["NodeManagerAddress"]] = look.remote(PACKAGE)
    found: dict[str, str | None] = {}
    for address, answer in asked.items():
        try:
            found[address] = ray.get(answer)
        except PackageNotFoundError:
            found[address] = None
    return found


def _check_reachable(address: str) -> None:
    """Refuse a `host:port` that nobody listens at, which Ray would try for minutes; it reads other addresses itself."""
    if re.fullmatch(r"[^/]+:\d+", address) and not _accepts(address, REACH_SECONDS):
        raise ServerError(f"no Ray cluster answers at {quote(address)}: start it, and run the same command again")


def _accepts(address: str, seconds: float) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError:
        return False
    return True


def _head_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


async def _from_thread(make: Callable[[], Iterator[T]], watch: Coroutine[Any, Any, NoReturn]) -> AsyncGenerator[T]:
    """Iterate in a thread, so that the event loop goes on watching the clock and Ctrl-C.

    The thread is a daemon: one that waits for a cluster that is gone does not keep the process from ending.

    Args:
        make: makes the iterator, in the thread.
        watch: ends the iteration by its error, after what had arrived before it.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

    def send(what: tuple[T] | BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, what)

    def iterate() -> None:
        try:
            for item in make():
                send((item,))
        except BaseException as error:  # noqa: BLE001 - raised again on the other side
            send(error)
        else:
            send(None)

    watching = asyncio.create_task(watch)
    watching.add_done_callback(lambda task: None if task.cancelled() else arrived.put_nowait(task.exception()))
    threading.Thread(target=iterate, name="ray-results", daemon=True).start()
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        watching.cancel()


def _import_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data  # noqa: F401
    except ImportError as error:
        raise UsageError("--executor ray needs Ray: pip install 'stairdata[ray]'") from error


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    _import_ray()
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        _check_reachable(address or "")
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            named = f"the Ray cluster at {quote(address)}" if address else "a Ray cluster on this machine"
            raise ServerError(f"{named} can't be used: {quote(str(error))}; see `ray status` there") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    leave = ray.shutdown
    try:
        yield
    except HeadGoneError:
        leave = partial(leave_without_head, ray.shutdown)
        raise
    finally:
        if started:
            leave()


def leave_without_head(shut_down: Callable[[], None], seconds: float = LEAVE_SECONDS) -> None:
    """Shut Ray down, or have the process end without that, where it waits for a head that is silent.

    Args:
        shut_down: Ray's.
        seconds: it may take.
    """
    leaving = threading.Thread(target=shut_down, name="ray-shutdown", daemon=True)
    leaving.start()
    leaving.join(seconds)
    if leaving.is_alive():
        atexit.register(_end)


def _end() -> None:
    """End the process; with Ray's threads still running, the interpreter would end in a segmentation fault."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
