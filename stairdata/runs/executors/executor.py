"""Who works on units: this process (`local`), or replicas on a Ray cluster (`ray_cluster`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from stairdata.llm.budget import Budget
from stairdata.llm.endpoint_pool import EndpointUse
from stairdata.recipe.section import Concurrency
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.executors.roles import option_of
from stairdata.runs.units import Unit, UnitResult, WorkContext, Workload
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.errors import UsageError, quote
from stairdata_schemas.secrets.urls import url_credentials

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
    """URLs of the servers of the model that the build is about, in place of the recipe's one."""
    role_endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Those of the other models that it asks, by role."""

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        Raises:
            UsageError: a URL with a password in it, an endpoint given twice, or an address without Ray.
        """
        for role, urls in {"": self.endpoints, **self.role_endpoints}.items():
            if held := next(filter(None, map(url_credentials, urls)), None):
                raise UsageError(
                    f"the URL of {option_of(role)} holds {held}; leave it out and set the key as the variable that "
                    "api_key_env of the recipe names"
                )
            plain = [url.rstrip("/") for url in urls]
            if twice := [url for url in plain if plain.count(url) > 1]:
                raise UsageError(f"{option_of(role)}: {quote(twice[0])} is given twice; give each server once")
        if self.address is not None and self.executor != "ray":
            raise UsageError(f"--address {quote(self.address)} names a Ray cluster; add --executor ray")

    def of_role(self, role: str) -> tuple[str, ...]:
        """Return the servers of one of the other models; empty where these are the recipe's."""
        return self.role_endpoints.get(role, ())


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
        """What each server did so far, by its URL, behind the role of another model than the one asked above all."""

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
    work = replace(workload, endpoints=execution.endpoints, role_endpoints=execution.role_endpoints)
    if execution.executor == "ray":
        from stairdata.runs.executors.ray_cluster import RayExecutor

        return RayExecutor(work, budget, concurrency, execution.address)
    return LocalExecutor(lambda: work.open(budget, waiting), budget, concurrency)
