"""Several servers of one model, asked as if they were one.

Work is pulled: each unit goes to the server that has the most room when the unit begins, so a server that is four times
as fast gets four times as many. What one server can no longer answer is asked of another one; a server that is gone is
looked at again after a while, and gets work again once it answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from stairdata.llm.client import Client, Generation
from stairdata_schemas.errors import ServerError

UnitT = TypeVar("UnitT")
EndT = TypeVar("EndT")
SaidT = TypeVar("SaidT")

RETRY_SECONDS = 60.0
"""From when a server is gone until it is looked at again; loading a model takes about as long."""
_log = logging.getLogger("stairdata")


class EndpointUse(NamedTuple):
    """What a server did."""

    units: int = 0
    """That ended there."""
    requests: int = 0
    """Retries included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: EndpointUse) -> EndpointUse:
        return EndpointUse(*(one + another for one, another in zip(self, other, strict=True)))

    def minus(self, other: EndpointUse) -> EndpointUse:
        return EndpointUse(*(one - another for one, another in zip(self, other, strict=True)))


@dataclass(slots=True, eq=False)
class _Member:
    """A server of the pool."""

    client: Client
    held: int = 0
    """Units, and requests outside of units, that are under way here."""
    units: int = 0
    retry_at: float | None = None
    """When it is looked at again; None while it answers."""
    look: asyncio.Task[None] | None = None

    @property
    def load(self) -> tuple[bool, float, int]:
        """The smaller, the more room; of servers with the same room, who was asked less is next."""
        window = self.client.window
        return not window.has_room, self.held / window.limit, self.client.tally.requests

    def use(self) -> EndpointUse:
        tally = self.client.tally
        return EndpointUse(self.units, tally.requests, tally.prompt_tokens, tally.completion_tokens)


class _Seat:
    """Where one unit is worked on."""

    def __init__(self, member: _Member) -> None:
        self.member = member
        member.held += 1

    def move(self, member: _Member) -> None:
        self.leave()
        self.member = member
        member.held += 1

    def leave(self) -> None:
        self.member.held -= 1


class EndpointPool:
    """Asks one model through all of its servers; takes requests as `Client` does.

    The invariant: a server counts as gone from a ServerError of its client until a look at it succeeds; meanwhile no
    request is sent to it. A request ends in a ServerError once each server that is left has failed it.

    Args:
        clients: one for each server.
        role: the model's, as `--endpoints` calls it; empty for the model that a build is about.
        is_spread: False asks the first server that answers, in the order given: one is at home here, and the others are
            other processes'.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        *,
        role: str = "",
        is_spread: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clients = clients
        self._role = role
        self._members = [_Member(client) for client in clients]
        self._is_spread = is_spread
        self._clock = clock
        self._seat: ContextVar[_Seat | None] = ContextVar("seat", default=None)

    @property
    def model(self) -> str:
        """The servers' name for the model."""
        return self.clients[0].model

    async def complete(self, prompt: str | list[int], **options: Any) -> Generation:
        """Continue a rendered prompt, as `Client.complete` does.

        Raises:
            RequestFailedError, StoppedError: as `Client.complete` says.
            ServerError: all servers are gone.
        """
        return await self.ask(lambda client: client.complete(prompt, **options))

    async def chat(self, messages: list[Any], **options: Any) -> Generation:
        """Ask for one chat answer, as `Client.chat` does.

        Raises:
            RequestFailedError, StoppedError: as `Client.chat` says.
            ServerError: all servers are gone.
        """
        return await self.ask(lambda client: client.chat(messages, **options))

    async def ask(self, send: Callable[[Client], Awaitable[SaidT]]) -> SaidT:
        """Send a request of any kind to one server, and to another one where that is gone.

        Raises:
            RequestFailedError, StoppedError: as `send` does.
            ServerError: all servers are gone.
        """
        failed: list[_Member] = []
        with self._seated() as seat:
            while True:
                member = seat.member
                try:
                    return await send(member.client)
                except ServerError as error:
                    failed.append(member)
                    self._lose(member, error)
                    if seat.member in failed:  # else another request of the unit has moved it already
                        left = await self._left(failed)
                        if not left:
                            raise
                        seat.move(self._best(left))

    async def room(self) -> None:
        """Wait until one of the servers would send one more request right away."""
        watched = self._alive() or self._members
        waiting = [asyncio.ensure_future(member.client.window.room()) for member in watched]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()

    def keeping(self, work: Callable[[UnitT], Awaitable[EndT]]) -> Callable[[UnitT], Awaitable[EndT]]:
        """Return work whose requests for one unit all go to one server, for its prefix cache, as long as it answers."""

        async def kept(unit: UnitT) -> EndT:
            with self._seated() as seat:
                result = await work(unit)
                seat.member.units += 1
                return result

        return kept

    def uses(self) -> dict[str, EndpointUse]:
        """Return what each server did so far, by what `--endpoints` calls it; nothing of the only one of a role."""
        if self._role and len(self._members) == 1:
            return {}
        role = f"{self._role}=" if self._role else ""
        return {role + member.client.base_url: member.use() for member in self._members}

    async def look(self) -> None:
        """Find out which servers answer and have the model; those that don't count as gone.

        Raises:
            ServerError: none does; in the words of the first.
        """
        await self.check(lambda client: client.check_model())

    async def check(self, check_one: Callable[[Client], Awaitable[SaidT]]) -> list[SaidT]:
        """Check each server; those that don't answer count as gone.

        Returns:
            What was found at the others.

        Raises:
            ServerError: none answers; in the words of the first.
            StairDataError: whatever else is wrong with one of them.
        """
        results = await asyncio.gather(*map(check_one, self.clients), return_exceptions=True)
        failures = [each for each in results if isinstance(each, BaseException)]
        for failure in failures:
            if len(failures) == len(results) or not isinstance(failure, ServerError):
                raise failure
        for member, result in zip(self._members, results, strict=True):
            if isinstance(result, ServerError):
                self._lose(member, result)
        return [result for result in results if not isinstance(result, BaseException)]

    def close(self) -> None:
        """Stop looking at servers that are gone."""
        for member in self._members:
            if member.look is not None:
                member.look.cancel()

    @contextmanager
    def _seated(self) -> Iterator[_Seat]:
        """Hold the seat of this unit, or one for this request alone."""
        given = self._seat.get()
        if given is not None:
            yield given
            return
        seat = _Seat(self._best(self._alive() or self._members))
        token = self._seat.set(seat)
        try:
            yield seat
        finally:
            self._seat.reset(token)
            seat.leave()

    def _lose(self, member: _Member, error: ServerError) -> None:
        is_news = member.retry_at is None
        member.retry_at = self._clock() + RETRY_SECONDS
        if is_news and len(self._members) > 1:
            _log.warning("warning: %s; what it was working on continues elsewhere", error)

    async def _left(self, failed: Sequence[_Member]) -> list[_Member]:
        """Return the servers that may still answer a request; where none is left, look again at those lost before."""
        left = [member for member in self._alive() if member not in failed]
        if not left:
            others = [member for member in self._members if member not in failed]
            await asyncio.gather(*map(self._begin_look, others))
            left = [member for member in others if member.retry_at is None]
        return left

    def _alive(self) -> list[_Member]:
        """Return the servers that answer, and begin to look at those whose time has come."""
        for member in self._members:
            if member.retry_at is not None and self._clock() >= member.retry_at:
                self._begin_look(member)
        return [member for member in self._members if member.retry_at is None]

    def _best(self, members: Iterable[_Member]) -> _Member:
        return min(members, key=lambda member: member.load) if self._is_spread else next(iter(members))

    def _begin_look(self, member: _Member) -> asyncio.Task[None]:
        if member.look is None or member.look.done():
            member.look = asyncio.create_task(self._look_again(member))
        return member.look

    async def _look_again(self, member: _Member) -> None:
        try:
            await member.client.check_model()
        except ServerError:
            member.retry_at = self._clock() + RETRY_SECONDS
        else:
            member.retry_at = None
            _log.warning("note: the LLM server at %s answers again", member.client.base_url)


def sum_uses(uses: Iterable[dict[str, EndpointUse]]) -> dict[str, EndpointUse]:
    """Add up what servers did, by name, in the order in which they come."""
    total: dict[str, EndpointUse] = {}
    for each in uses:
        for name, use in each.items():
            total[name] = total.get(name, EndpointUse()).plus(use)
    return total


def table_of_endpoints(uses: dict[str, EndpointUse]) -> str:
    """Return a table of what each server did; empty where there is one alone."""
    if len(uses) < 2:
        return ""
    width = max(map(len, uses))
    rows = [
        f"  {name:<{width}}  {_units(name, use)}  {use.requests:>9,} requests  "
        f"{use.prompt_tokens + use.completion_tokens:>12,} tokens"
        for name, use in uses.items()
    ]
    return "\n".join(["what each endpoint did:", *rows])


def _units(name: str, use: EndpointUse) -> str:
    """Say how many units ended at a server; of a judge, which is asked for each request apart, nothing."""
    has_role = "=" in name.partition("://")[0]
    return f"{use.units:>7,} units" if use.units or not has_role else " " * 13
