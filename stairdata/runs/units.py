"""Units of work: what goes into an executor, what comes out, and what it takes to work on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from stairdata.recipe import ModelServer, Recipe
from stairdata_schemas.aliases import Row, WaitProgress

if TYPE_CHECKING:
    from stairdata.llm.budget import Budget
    from stairdata.llm.client import Client
    from stairdata.llm.endpoint_pool import EndpointPool
    from stairdata.llm.outcomes import RequestFailedError


class UnitFailedError(Exception):
    """A unit that got answers but can't become a row: the rule it broke, and the text that broke it."""

    def __init__(self, rule: str, raw: str) -> None:
        self.rule = rule
        self.raw = raw
        super().__init__(rule)


class Unit(NamedTuple):
    """A piece of work that becomes one row."""

    key: str
    number: int
    """Its ordinal in the input."""
    text: str
    """What quarantine shows of it."""
    payload: Row
    """What working on it takes; JSON values, so that it can be sent to another process."""
    group: int | None = None
    """Ordinal of the units that share something that is asked for once, such as an answer: they are in one shard.
    Groups are numbered from 0 in the order in which they come up. None: units of one number are such a group."""

    @property
    def shard_group(self) -> int:
        """What stays in one piece when a build is cut into shards."""
        return self.number if self.group is None else self.group


class UnitResult(NamedTuple):
    """What work makes of a unit: its row, and counts that the manifest sums up."""

    row: Row
    counts: dict[str, int]
    outcomes: dict[str, int]
    """How its requests ended, those that were made again included."""
    leftover: Path | None = None
    """The unit's own journal, to be removed once its row is safe."""
    usage: dict[str, int] | None = None
    """Requests, prompt_tokens, completion_tokens and reasoning_tokens, where its row's columns don't say all that it
    took."""


if TYPE_CHECKING:
    UnitFailure = RequestFailedError | UnitFailedError
    """Why a unit has no row: it goes to quarantine, and the next run tries it again."""


@dataclass(frozen=True, slots=True)
class WorkContext:
    """What works on units, once its servers are there."""

    work: Callable[[Unit], Awaitable[UnitResult]]
    """Raises a `UnitFailure` where the unit has to be refused, any other error where the run has to stop."""
    room: Callable[[], Awaitable[None]]
    """Returns when one more unit would find its server idle."""
    clients: Sequence[Client]
    iterations: Callable[[], int] | None = None
    """How many iterations of a search were made so far, where the work is a search."""
    pools: Sequence[EndpointPool] = ()
    """The servers that `--endpoints` may name, for what each of them did."""


def clients_of(pools: Sequence[EndpointPool]) -> list[Client]:
    """Return the clients of all servers of some models."""
    return [client for pool in pools for client in pool.clients]


def room_of(pools: Sequence[EndpointPool]) -> Callable[[], Awaitable[None]]:
    """Return what waits until the servers of each of some models would take one more request right away."""

    async def room() -> None:
        for pool in pools:
            await pool.room()

    return room


@dataclass(frozen=True)
class Workload(ABC):
    """How to open the work of a build, in this process or in another one: it can be pickled."""

    recipe: Recipe
    folder: Path
    """The build's work folder: logs, and journals of what is under way."""
    endpoints: tuple[str, ...] = field(default=(), kw_only=True)
    """URLs of the model's servers, in place of the recipe's one."""
    role_endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    """Those of the other models that the work asks, by role."""
    is_spread: bool = field(default=True, kw_only=True)
    """False asks the first of them that answers."""

    @property
    @abstractmethod
    def asked(self) -> ModelServer:
        """The model that may have several servers."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Servers that run already; none where the work serves its model itself."""
        own = self.asked.base_url
        return self.endpoints or ((own,) if own else ())

    def at(self, urls: tuple[str, ...], *, is_spread: bool = True) -> Self:
        """Return the same work with other servers."""
        return replace(self, endpoints=urls, is_spread=is_spread)

    def for_replicas(self) -> Self:
        """Return the same work without what belongs to this process alone."""
        return self

    @abstractmethod
    def open(self, budget: Budget, waiting: WaitProgress) -> AbstractAsyncContextManager[WorkContext]:
        """Connect to the servers, starting those that the recipe has served here.

        Raises:
            ServerError: one of them can't be started or reached.
        """
