"""Working on the rows of an evaluation: one tested model after the other, with one judge for all.

Models that are served here share the machine, so one is stopped before the next one starts. A row's answer is judged as
soon as it is there: the tested model answers others meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stairdata.generators.evaluations.answering import AnsweringModel, ChatModel, CompletionsModel
from stairdata.generators.evaluations.evaluator import Evaluator
from stairdata.generators.evaluations.judging.answer_judge import AnswerJudge
from stairdata.generators.evaluations.plan import EvaluationJob, ModelUnderTest
from stairdata.generators.evaluations.reply_journal import ReplyJournal
from stairdata.generators.responses.workload import OpenScorer
from stairdata.llm.budget import Budget
from stairdata.llm.endpoint_pool import EndpointPool, EndpointUse, sum_uses
from stairdata.llm.session import Connect, make_actor, open_pool
from stairdata.recipe import Endpoint
from stairdata.recipe.attacks import Attacker
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.units import Unit, UnitResult, WorkContext, clients_of, room_of
from stairdata.scorers.served import pools_of
from stairdata.search.scoring import Scorer
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.building import Build

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure


JUDGE = "judge"
"""Name of the judge's part in a build, of its server's log, and of its role."""
ATTACKER = "attacker"


def server_name(number: int) -> str:
    """Return the name of a tested model's part in a build, and of its server's log."""
    return f"server-{number}"


class EvaluationExecutor:
    """Works on units in this process, in the order of the tested models.

    Args:
        build: holds logs and journals; a folder holds logs alone, where several processes work on the build.
        job: what is to be done.
        budget: charged by all servers.
        waiting: told when the start of a server takes its time.
        open_scorer: opens the process reward model, where there is one.
        connect: connects to servers in place of `open_client`.
        execution: where the servers are of the tested model, and of the others that are asked.
        is_spread: False asks the first server of the tested model that answers.
    """

    def __init__(
        self,
        build: Build | Path,
        job: EvaluationJob,
        budget: Budget,
        waiting: WaitProgress,
        open_scorer: OpenScorer | None = None,
        *,
        connect: Connect | None = None,
        execution: Execution = HERE,
        is_spread: bool = True,
    ) -> None:
        self._build = build if isinstance(build, Build) else None
        self._folder = build.work if isinstance(build, Build) else build
        self._job = job
        self._budget = budget
        self._waiting = waiting
        self._open_scorer = open_scorer
        self._connect = connect
        self._execution = execution
        self._is_spread = is_spread
        self.shared: list[EndpointPool] = []
        """The servers that all tested models share."""
        self._current: LocalExecutor | None = None
        self._uses: dict[str, EndpointUse] = {}

    @property
    def context(self) -> WorkContext | None:
        """What works now."""
        return self._current.context if self._current else None

    @property
    def uses(self) -> dict[str, EndpointUse]:
        """What each server did so far, as `Executor.uses` says."""
        return sum_uses([self._uses_of_tested(), *(pool.uses() for pool in self.shared)])

    def _uses_of_tested(self) -> dict[str, EndpointUse]:
        return sum_uses([self._uses, *([self._current.uses] if self._current else [])])

    async def run(self, units: Sequence[Unit]) -> AsyncGenerator[tuple[Unit, UnitResult | UnitFailure]]:
        """Work on units; servers are started only for what is to be done.

        Raises:
            ServerError: a server is gone, or can't be started.
        """
        scores, attacks = ({unit.payload[name] for unit in units} for name in ("score", "attack"))
        async with AsyncExitStack() as stack:
            opened = await self.open_shared(scores, attacks, stack)
            models: list[ModelUnderTest | None] = [*self._job.models]
            for model in models or [None]:
                mine = [unit for unit in units if model is None or unit.payload["model"] == model.label]
                if not mine or self._budget.reason is not None:
                    continue
                self._uses = self._uses_of_tested()
                concurrency = self._job.recipe.evaluations.concurrency
                self._current = LocalExecutor(partial(opened, model), self._budget, concurrency)
                async with aclosing(self._current.run(mine)) as ended:
                    async for end in ended:
                        yield end

    async def open_shared(
        self, scores: Collection[BenchmarkScore], attacks: Collection[str], stack: AsyncExitStack
    ) -> Callable[[ModelUnderTest | None], contextlib.AbstractAsyncContextManager[WorkContext]]:
        """Connect to what all tested models share, as far as rows need it.

        Args:
            scores: of the rows.
            attacks: of the rows.
            stack: leaves the servers.

        Returns:
            What opens the work on the rows of a tested model; of none where the answers are given.

        Raises:
            ServerError: a server can't be started or reached.
        """
        replies = ReplyJournal(self._build)
        stack.callback(replies.close)
        judge_pool = None
        if any(map(self._job.words.asks, scores)):
            opening = self._pool(self._job.recipe.evaluations.judge, JUDGE, role=JUDGE)
            judge_pool = await stack.enter_async_context(opening)
        judge = AnswerJudge(self._job.words, judge_pool, self._job.recipe.seed, replies)
        attacker = await self._attacker(attacks, stack)
        scorer = None
        if self._open_scorer is not None and self._job.models:
            scorer = await stack.enter_async_context(self._open_scorer(self._folder, self._budget, self._waiting))
        shared = [pool for pool in (judge_pool, attacker[1] if attacker else None) if pool]
        self.shared = [*shared, *pools_of(scorer)]

        def evaluator(answering: AnsweringModel | None) -> Evaluator:
            return Evaluator(self._job.recipe, self._job.attacks, judge, replies, answering, attacker)

        return lambda model: self._opened(model, evaluator, shared, scorer)

    @asynccontextmanager
    async def _opened(
        self,
        model: ModelUnderTest | None,
        evaluator: Callable[[AnsweringModel | None], Evaluator],
        shared: Sequence[EndpointPool],
        scorer: Scorer | None,
    ) -> AsyncIterator[WorkContext]:
        if model is None:  # the judge alone works
            yield WorkContext(evaluator(None).work, room_of(shared[:1]), clients_of(shared))
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
                answering = CompletionsModel(actor, section, scorer, seed, self._folder / "running")
            # as many are begun as the tested model can take; where the judge is slower, they wait for it with their
            # answers, and both are busy
            work = pool.keeping(evaluator(answering).work)
            yield WorkContext(work, pool.room, clients_of([pool, *shared]), pools=[pool])

    async def _attacker(self, attacks: Collection[str], stack: AsyncExitStack) -> tuple[Attacker, EndpointPool] | None:
        """Connect to the model that writes attacks, where one of them needs it."""
        section = self._job.recipe.evaluations.attacks.attacker
        if section is None or not any(self._job.attacks[name].asks_attacker for name in attacks):
            return None
        return section, await stack.enter_async_context(self._pool(section, ATTACKER, role=ATTACKER))

    @asynccontextmanager
    async def _pool(self, endpoint: Endpoint, name: str, *, role: str = "") -> AsyncIterator[EndpointPool]:
        if self._connect is not None:
            async with self._connect(endpoint, name) as client:
                yield EndpointPool([client], role=role)
            return
        urls = self._execution.of_role(role) if role else self._execution.endpoints
        log = self._folder / f"{name}.log"
        is_spread = self._is_spread or bool(role)
        opening = open_pool(endpoint, urls, log, self._waiting, self._budget, role=role, is_spread=is_spread)
        async with opening as pool:
            yield pool
