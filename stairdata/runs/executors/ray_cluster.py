"""Units on a Ray cluster: one replica of the work for each server or each GPU.

A unit's row depends on nothing but its seeds and its server's answers, so the rows are those of the local executor.

Ray ends the process, in C++ and past all `finally`, once a cluster's head has not answered for 60 s. So the head is
watched here, and the run ends in an error of ours before that.

Limits on tokens and cost are checked here as units come in: what is in flight then is over them. They are exact with
the local executor alone.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
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
from stairdata.runs.executors.ray_replicas import ReplicaPool, ReplicaWorker
from stairdata.runs.units import Unit, UnitFailedError, UnitResult, Workload
from stairdata_schemas.errors import ServerError, UsageError, quote

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure

T = TypeVar("T")
PACKAGE = "stairdata"
UNITS_IN_FLIGHT = 64  # of a replica where concurrency is auto: a window's first size
CPUS = 0.1  # a replica mostly waits for its server
HEAD_SECONDS = 2.0  # between two looks at the head, and for it to accept a connection
HEAD_MISSES = 5  # looks in a row at a head that is gone: some 10 s if it refuses, 20 s if it is silent
REACH_SECONDS = 10.0  # for a cluster to accept a connection
LEAVE_SECONDS = 15.0  # for Ray to shut down without a head: 5 if that refuses, for ever if it is silent


class HeadGoneError(ServerError):
    """The head of the Ray cluster is gone."""


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
        with _cluster(self._address):
            self._check_sendable()
            results = self._replicas().run(units, watch_head(_head_address()))
            async with aclosing(results):
                async for unit, result in results:
                    self._budget.charge(Expense(*result["spent"]))
                    new = {url: EndpointUse(*use) for url, use in result["uses"].items()}
                    self.uses = sum_uses([self.uses, new])
                    yield unit, read_result(result)
                    if self._is_over():
                        return

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

    def _replicas(self) -> ReplicaPool:
        """Return a replica for each server, or for each GPU, spread over the nodes."""
        import ray

        gpus = 0
        if not self._workload.urls:
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            gpus = int(resources.get("GPU", 0))
        actor: Any = ray.remote(ReplicaWorker)
        actor = actor.options(
            max_concurrency=self._in_flight,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
            num_cpus=0 if gpus else CPUS,
            num_gpus=1 if gpus else 0,
        )
        count = gpus or max(1, len(self._workload.urls))
        return ReplicaPool(lambda number: actor.remote(self._workload, number), count, self._in_flight)


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
    """Return the release of this package on each machine of the cluster, None where it is not installed.

    A machine that goes away meanwhile, or went unnoticed, is left out: nothing is placed on it.
    """
    import ray
    from ray.exceptions import NodeDiedError, ObjectLostError, TaskUnschedulableError, WorkerCrashedError
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
        except (TaskUnschedulableError, NodeDiedError, WorkerCrashedError, ObjectLostError):
            continue
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


def _import_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UsageError("--executor ray needs Ray: pip install 'stairdata[ray]'") from error


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    _import_ray()
    import ray

    started = not ray.is_initialized()
    if started:
        _check_reachable(address or "")
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            named = f"the Ray cluster at {quote(address)}" if address else "a Ray cluster on this machine"
            raise ServerError(f"{named} can't be used: {quote(str(error))}; see `ray status` there") from error
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
