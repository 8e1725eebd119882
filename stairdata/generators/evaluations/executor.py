"""Working on the rows of an evaluation: one tested model after the other, with one judge for all.

Models that are served here share the machine, so one is stopped before the next one starts. A row's answer is judged as
soon as it is there: the tested model answers others meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from stairdata.generators.evaluations.answering import AnsweringModel, ChatModel, CompletionsModel
from stairdata.generators.evaluations.evaluator import Evaluator
from stairdata.generators.evaluations.judging.answer_judge import AnswerJudge
from stairdata.generators.evaluations.plan import EvaluationJob, ModelUnderTest
from stairdata.generators.evaluations.reply_journal import ReplyJournal
from stairdata.generators.responses.workload import OpenScorer
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client
from stairdata.llm.endpoint_pool import EndpointPool, EndpointUse, sum_uses
from stairdata.llm.session import Connect, make_actor, open_client, open_pool
from stairdata.recipe import Endpoint
from stairdata.recipe.attacks import Attacker
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.units import Unit, UnitResult, WorkContext, room_of
from stairdata.search.scoring import Scorer
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.building import Build

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure


JUDGE = "judge"
"""Name of the judge's part in a build, and of its server's log."""


def server_name(number: int) -> str:
    """Return the name of a tested model's part in a build, and of its server's log."""
    return f"server-{number}"


class EvaluationExecutor:
    """Works on units in this process, in the order of the tested models.

    Args:
        build: holds logs and journals.
        job: what is to be done.
        budget: charged by all servers.
        waiting: told when the start of a server takes its time.
        open_scorer: opens the process reward model, where there is one.
        connect: connects to servers in place of `open_client`.
        endpoints: URLs of the servers of the tested model, in place of the recipe's one.
    """

    def __init__(
        self,
        build: Build,
        job: EvaluationJob,
        budget: Budget,
        waiting: WaitProgress,
        open_scorer: OpenScorer | None = None,
        *,
        connect: Connect | None = None,
        endpoints: Sequence[str] = (),
    ) -> None:
        self._build = build
        self._job = job
        self._budget = budget
        self._waiting = waiting
        self._open_scorer = open_scorer
        self._connect = connect
        self._endpoints = endpoints
        self._current: LocalExecutor | None = None
        self._uses: dict[str, EndpointUse] = {}

    @property
    def context(self) -> WorkContext | None:
        """What works now."""
        return self._current.context if self._current else None

    @property
    def uses(self) -> dict[str, EndpointUse]:
        """What each server of the tested models did so far, by URL."""
        return sum_uses([self._uses, *([self._current.uses] if self._current else [])])

    async def run(self, units: Sequence[Unit]) -> AsyncGenerator[tuple[Unit, UnitResult | UnitFailure]]:
        """Work on units; servers are started only for what is to be done.

        Raises:
            ServerError: a server is gone, or can't be started.
        """
        section = self._job.recipe.evaluations
        async with AsyncExitStack() as stack:
            replies = ReplyJournal(self._build)
            stack.callback(replies.close)
            judge_client = None
            if any(self._job.words.asks(unit.payload["score"]) for unit in units):
                judge_client = await stack.enter_async_context(self._client(section.judge, JUDGE))
            judge = AnswerJudge(self._job.words, judge_client, self._job.recipe.seed, replies)
            attacker = await self._attacker(units, stack)
            scorer = None
            if self._open_scorer is not None and self._job.models:
                scorer = await stack.enter_async_context(
                    self._open_scorer(self._build.work, self._budget, self._waiting)
                )
            shared = [client for client in (judge_client, attacker[1] if attacker else None) if client]
            models: list[ModelUnderTest | None] = [*self._job.models]
            for model in models or [None]:
                mine = [unit for unit in units if model is None or unit.payload["model"] == model.label]
                if not mine or self._budget.reason is not None:
                    continue

                def evaluator(answering: AnsweringModel | None) -> Evaluator:
                    return Evaluator(self._job.recipe, self._job.attacks, judge, replies, answering, attacker)

                opened = self._opened(model, evaluator, shared, scorer)
                self._uses = self.uses
                self._current = LocalExecutor(opened, self._budget, section.concurrency)
                async with aclosing(self._current.run(mine)) as ended:
                    async for end in ended:
                        yield end

    def _opened(
        self,
        model: ModelUnderTest | None,
        evaluator: Callable[[AnsweringModel | None], Evaluator],
        shared: Sequence[Client],
        scorer: Scorer | None,
    ) -> Callable[[], contextlib.AbstractAsyncContextManager[WorkContext]]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[WorkContext]:
            if model is None:  # the judge alone works
                yield WorkContext(evaluator(None).work, room_of(shared[:1]), list(shared))
                return
            name = server_name(self._job.models.index(model))
            endpoint = self._job.recipe.beside_prm(model.endpoint)
            async with self._pool(endpoint, name) as pool:
                section = self._job.recipe.responses
                seed = self._job.recipe.seed
                if model.is_chat:
                    answering: AnsweringModel = ChatModel(pool, section, seed)
                else:
                    actor = make_actor(pool, model.endpoint, section)
                    answering = CompletionsModel(actor, section, scorer, seed, self._build.work / "running")
                # as many are begun as the tested model can take; where the judge is slower, they wait for it with their
                # answers, and both are busy
                work = pool.keeping(evaluator(answering).work)
                yield WorkContext(work, pool.room, [*pool.clients, *shared], pools=[pool])

        return opened

    async def _attacker(self, units: Sequence[Unit], stack: AsyncExitStack) -> tuple[Attacker, Client] | None:
        """Connect to the model that writes attacks, where one of the units needs it."""
        section = self._job.recipe.evaluations.attacks.attacker
        attacks = self._job.attacks
        if section is None or not any(attacks[unit.payload["attack"]].asks_attacker for unit in units):
            return None
        return section, await stack.enter_async_context(self._client(section, "attacker"))

    @asynccontextmanager
    async def _pool(self, endpoint: Endpoint, name: str) -> AsyncIterator[EndpointPool]:
        if self._connect is not None:
            async with self._connect(endpoint, name) as client:
                yield EndpointPool([client])
            return
        log = self._build.work / f"{name}.log"
        async with open_pool(endpoint, self._endpoints, log, self._waiting, self._budget) as pool:
            yield pool

    def _client(self, endpoint: Endpoint, name: str) -> contextlib.AbstractAsyncContextManager[Client]:
        if self._connect is not None:
            return self._connect(endpoint, name)
        return open_client(endpoint, self._build.work / f"{name}.log", self._waiting, self._budget)
