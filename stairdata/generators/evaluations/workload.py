"""The work of an evaluation of one tested model, for replicas on a Ray cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from stairdata.generators.evaluations.executor import EvaluationExecutor
from stairdata.generators.evaluations.plan import EvaluationJob
from stairdata.generators.responses.workload import OpenScorer
from stairdata.llm.budget import Budget
from stairdata.recipe import Endpoint, Recipe
from stairdata.runs.executors.executor import Execution
from stairdata.runs.units import WorkContext, Workload
from stairdata_schemas.aliases import WaitProgress


@dataclass(frozen=True)
class EvaluationWorkload(Workload):
    """Makes the row of each unit.

    A process keeps what it was told for the rows that share it, which it works on alone, and no longer than it lives.
    """

    job: EvaluationJob
    open_scorer: OpenScorer | None = None

    @property
    def asked(self) -> Endpoint:
        return self.recipe.beside_prm(self.job.models[0].endpoint)

    def for_replicas(self) -> EvaluationWorkload:
        job = replace(self.job, recipe=Recipe(), units=[], refused=[], contamination={})  # each unit brings its row
        return replace(self, job=job)

    @asynccontextmanager
    async def open(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[WorkContext]:
        job = replace(self.job, recipe=self.recipe)
        servers = Execution(endpoints=self.endpoints, role_endpoints=self.role_endpoints)
        work = EvaluationExecutor(
            self.folder, job, budget, waiting, self.open_scorer, execution=servers, is_spread=self.is_spread
        )
        async with AsyncExitStack() as stack:
            opened = await work.open_shared(job.words.scores, job.attacks, stack)
            context = await stack.enter_async_context(opened(job.models[0]))
            yield replace(context, pools=[*context.pools, *work.shared])
