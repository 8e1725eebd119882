"""Several servers of one actor: a tree stays on one of them for its prefix cache, and moves if that one is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from stairdata.generators.trees.judge_servers import make_judge, open_judge_servers
from stairdata.generators.trees.rows import Prompt
from stairdata.generators.trees.tree_runner import TreeRunner
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client
from stairdata.llm.session import make_actor, open_client
from stairdata.llm.window import Window
from stairdata.recipe import Endpoint, Recipe
from stairdata.runs.units import UnitResult
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.errors import ServerError

_log = logging.getLogger("stairdata")


@dataclass(slots=True)
class Replica:
    """A server of the actor, and the runner of the trees on it."""

    client: Client
    runner: TreeRunner
    trees: int = 0
    is_gone: bool = False

    @property
    def window(self) -> Window:
        return self.client.window


class ActorPool:
    """Runs each tree on the replica that is least busy."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas

    def iterations(self) -> int:
        """Return how many iterations were made so far."""
        return sum(replica.runner.judged for replica in self._replicas)

    async def room(self) -> None:
        """Wait until one of the servers would send one more request right away."""
        waiting = [asyncio.ensure_future(replica.window.room()) for replica in self._alive()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()

    async def run(self, tree_id: str, prompt: Prompt) -> UnitResult:
        """Grow a tree; what one server has answered is not asked of the next one.

        Raises:
            ServerError: the last server is gone.
        """
        while True:
            replica = min(self._alive(), key=lambda each: each.trees / each.window.limit)
            replica.trees += 1
            try:
                return await replica.runner.run(tree_id, prompt)
            except ServerError as error:
                is_news, replica.is_gone = not replica.is_gone, True
                if not self._alive():
                    raise
                if is_news:
                    _log.warning("warning: %s; its trees continue elsewhere", error)
            finally:
                replica.trees -= 1

    def _alive(self) -> list[Replica]:
        return [replica for replica in self._replicas if not replica.is_gone]


@asynccontextmanager
async def open_actor_pool(
    recipe: Recipe, urls: Sequence[str], budget: Budget, name: str, folder: Path, waiting: WaitProgress
) -> AsyncIterator[tuple[ActorPool, list[Client]]]:
    """Connect to the servers of the actor and of the judge, starting those that are ours.

    Args:
        recipe: sections `actor` and `trees`.
        urls: servers of the actor in place of the recipe's one.
        budget: charged by all of them.
        name: the actor's name in the rows.
        folder: of logs and of the journals of running trees.
        waiting: told when the start of a server takes its time.

    Raises:
        ServerError: one of them can't be started or reached.
    """
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(endpoint, folder / "server.log", waiting, budget))
            for endpoint in endpoints_of(recipe.actor, urls)
        ]
        judging = await stack.enter_async_context(open_judge_servers(recipe.trees.judge, folder, waiting, budget))
        replicas = []
        for client in clients:
            actor = make_actor(client, recipe.actor, recipe.trees)
            judge = make_judge(recipe.trees.judge, judging, actor)
            replicas.append(Replica(client, TreeRunner(recipe, actor, judge, name, folder / "running")))
        yield ActorPool(replicas), [*clients, *judging.clients]


def endpoints_of(actor: Endpoint, urls: Sequence[str]) -> list[Endpoint]:
    """Return the actor's endpoint once for each URL, or as it is."""
    return [actor.model_copy(update={"base_url": url}) for url in urls] or [actor]
