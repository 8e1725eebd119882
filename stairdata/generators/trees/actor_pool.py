"""Several servers of one actor: a tree stays on one of them for its prefix cache, and moves on if that one is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from stairdata.generators.trees.judges import Judge
from stairdata.generators.trees.tree_runner import Grower, Prompt
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client
from stairdata.llm.session import make_actor, open_client
from stairdata.llm.window import Window
from stairdata.recipe import Endpoint, Recipe
from stairdata.runs.options import BuildOptions
from stairdata.runs.runner import Done
from stairdata_schemas.errors import ServerError

_log = logging.getLogger("stairdata")


@dataclass(slots=True)
class Ship:
    """A server and the grower that asks it."""

    client: Client
    grower: Grower
    trees: int = 0
    is_gone: bool = False

    @property
    def window(self) -> Window:
        return self.client.window


class Fleet:
    """Grows each tree on the server that is least busy."""

    def __init__(self, ships: Sequence[Ship]) -> None:
        self._ships = ships

    def iterations(self) -> int:
        """Count the iterations made so far."""
        return sum(ship.grower.judged for ship in self._ships)

    async def room(self) -> None:
        """Wait until one of the servers would take one more request at once."""
        waiting = [asyncio.ensure_future(ship.window.room()) for ship in self._afloat()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()

    async def grow(self, tree_id: str, prompt: Prompt) -> Done:
        """Grow a tree; what one server has answered is not asked of the next.

        Raises:
            ServerError: the last server is gone.
        """
        while True:
            ship = min(self._afloat(), key=lambda ship: ship.trees / ship.window.limit)
            ship.trees += 1
            try:
                return await ship.grower.grow(tree_id, prompt)
            except ServerError as error:
                is_news, ship.is_gone = not ship.is_gone, True
                if not self._afloat():
                    raise
                if is_news:
                    _log.warning("warning: %s; its trees go on elsewhere", error)
            finally:
                ship.trees -= 1

    def _afloat(self) -> list[Ship]:
        return [ship for ship in self._ships if not ship.is_gone]


@asynccontextmanager
async def open_fleet(
    recipe: Recipe, options: BuildOptions, budget: Budget, name: str, work: Path
) -> AsyncIterator[tuple[Fleet, list[Client]]]:
    """Connect to the servers of the actor and of the judge, starting those that are ours.

    Args:
        recipe: sections `actor` and `trees`.
        options: other servers of the actor, and who is told of waiting.
        budget: charged by all of them.
        name: the actor's name in the rows.
        work: folder of logs and of the journals of running trees.

    Raises:
        ServerError: one of them can't be started or reached.
    """
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(endpoint, work / "server.log", options.waiting, budget))
            for endpoint in endpoints_of(recipe.actor, options.endpoints)
        ]
        judging = recipe.trees.judge.endpoint
        judge_client = None
        if judging is not None:
            opening = open_client(judging, work / "judge.log", options.waiting, budget)
            judge_client = await stack.enter_async_context(opening)
        ships = []
        for client in clients:
            actor = make_actor(client, recipe.actor, recipe.trees)
            judge = Judge(recipe.trees.judge, judge_client or client)
            ships.append(Ship(client, Grower(recipe, actor, judge, name, work / "running")))
        yield Fleet(ships), [*clients, *([judge_client] if judge_client else [])]


def endpoints_of(actor: Endpoint, urls: Sequence[str]) -> list[Endpoint]:
    """Return the actor's endpoint once for each URL, or as it is."""
    return [actor.model_copy(update={"base_url": url}) for url in urls] or [actor]
