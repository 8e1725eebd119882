"""Who works on units: this process (`local`), or replicas on a Ray cluster (`ray_cluster`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from stairdata.llm.budget import Budget
from stairdata.llm.endpoint_pool import EndpointUse
from stairdata.recipe.section import Concurrency
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.units import Unit, UnitResult, WorkContext, Workload
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.errors import UsageError, quote

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure


@dataclass(frozen=True, slots=True)
class Execution:
    """Where the units of a build are worked on."""

    executor: Literal["local", "ray"] = "local"
    """local: this process. ray: replicas on a Ray cluster, one for each server or GPU."""
    address: str | None = None
    """The Ray cluster's; default: one that is started here for the duration."""
    endpoints: tuple[str, ...] = ()
    """URLs of the asked model's servers, in place of the recipe's one."""

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        Raises:
            UsageError: an endpoint is given twice, or an address without Ray.
        """
        plain = [url.rstrip("/") for url in self.endpoints]
        if twice := [url for url in plain if plain.count(url) > 1]:
            raise UsageError(f"--endpoints: {quote(twice[0])} is given twice; give each server once")
        if self.address is not None and self.executor != "ray":
            raise UsageError(f"--address {quote(self.address)} names a Ray cluster; add --executor ray")


HERE = Execution()


def check_unbatched(execution: Execution) -> None:
    """Refuse servers and clusters for what is asked in batches, or takes over what batches have answered.

    Raises:
        UsageError: there are some.
    """
    if execution != HERE:
        raise UsageError(
            "--batch asks the Batch API, and a build that has had batches goes on in one process with one server: "
            "leave --endpoints, --executor and --address out"
        )


class Executor(Protocol):
    """Works on units and yields how each ended, in the order in which they end.

    A unit is yielded once or, where the run is stopped, not at all. Whoever iterates writes a result down before
    asking for the next one. When the budget is stopped no further unit is begun, and the iteration ends once the
    requests in flight are answered.
    """

    @property
    def context(self) -> WorkContext | None:
        """What works in this process, for the progress report; None before it is open, or where it is elsewhere."""

    @property
    def uses(self) -> dict[str, EndpointUse]:
        """What each server of the asked model did so far, by URL."""

    def run(self, units: Sequence[Unit]) -> AsyncGenerator[tuple[Unit, UnitResult | UnitFailure]]:
        """Work on units, begun in the order given; iterate under `contextlib.aclosing`.

        Raises:
            ServerError: the servers are gone.
        """


def make_executor(
    workload: Workload,
    budget: Budget,
    concurrency: Concurrency,
    waiting: WaitProgress,
    execution: Execution = HERE,
) -> Executor:
    """Return the executor of a build.

    Args:
        workload: the build's work.
        budget: stops the run when it is spent.
        concurrency: units in flight at most, on Ray of each replica.
        waiting: told when the start of a server takes its time.
        execution: where.

    Raises:
        UsageError: Ray is wanted and not installed.
    """
    work = workload.at(execution.endpoints) if execution.endpoints else workload
    if execution.executor == "ray":
        from stairdata.runs.executors.ray_cluster import RayExecutor

        return RayExecutor(work, budget, concurrency, execution.address)
    return LocalExecutor(lambda: work.open(budget, waiting), budget, concurrency)
