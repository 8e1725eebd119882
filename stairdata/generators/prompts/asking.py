"""One model asked about prompts, each until its answer can be read: what labels and twins of prompts share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from stairdata.generators.prompts.filters import Rejection
from stairdata.llm.actor import RequestUsage
from stairdata.llm.budget import Budget
from stairdata.llm.client import Generation
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.session import open_pool
from stairdata.recipe import Endpoint, TaskJudge, TwinTeacher
from stairdata.runs.executors.executor import HERE, Execution, make_executor
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.row_journal import JOURNAL
from stairdata.runs.runner import RunResult, run_units
from stairdata.runs.units import Unit, UnitResult, WorkContext, Workload
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row, WaitProgress
from stairdata_schemas.building import Build


class PromptAnswer(NamedTuple):
    """What came of asking about a prompt."""

    found: str | Rejection
    """What was read, or what is wrong with the last answer."""
    outcomes: dict[str, int]
    """How the requests ended."""
    used: dict[str, int]
    """Requests and tokens."""


@dataclass(frozen=True)
class PromptWorkload(Workload):
    """Asks one model about the prompt of each unit, whose payload is its row."""

    model: TaskJudge | TwinTeacher
    role: ClassVar[str] = ""
    """The model's, where the build is not about it."""

    @property
    def asked(self) -> Endpoint:
        return self.model

    @asynccontextmanager
    async def open(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[WorkContext]:
        log = self.folder / "server.log"
        opening = open_pool(self.asked, self.endpoints, log, waiting, budget, role=self.role, is_spread=self.is_spread)
        async with opening as pool:

            async def work(unit: Unit) -> UnitResult:
                return await self.answer(pool, unit.payload)

            yield WorkContext(pool.keeping(work), pool.room, pool.clients, pools=[pool])

    @abstractmethod
    async def answer(self, pool: EndpointPool, row: Row) -> UnitResult:
        """Return the row that comes of asking about a row of ours.

        Raises:
            RequestFailedError: a request failed for good, or no answer can be read.
        """

    async def ask(
        self, pool: EndpointPool, row: Row, call: int, question: str, read: Callable[[Generation], str | Rejection]
    ) -> PromptAnswer:
        """Ask until an answer can be read, at most as often as the recipe says.

        Args:
            pool: the model's servers.
            row: whom it is about.
            call: ordinal of the question among those about a prompt; each ask has a seed of its own.
            question: the message.
            read: reads an answer, or says what is wrong with it.
        """
        outcomes: Counter[str] = Counter()
        used: Counter[str] = Counter()
        found: str | Rejection = Rejection("", "")
        options: dict[str, Any] = {} if self.model.temperature is None else {"temperature": self.model.temperature}
        for ask in range(self.model.reasks + 1):
            generation = await pool.chat(
                [{"role": "user", "content": question}],
                max_tokens=self.model.max_tokens,
                seed=identity.request_seed(self.recipe.seed, row["prompt_id"], call, ask),
                **options,
            )
            outcomes.update(map(str, generation.outcomes))
            used.update(RequestUsage.of(generation).counts())
            found = read(generation)
            if isinstance(found, str):
                break
        return PromptAnswer(found, dict(outcomes), dict(used))


def ask_about(
    build: Build,
    rows: Sequence[Row],
    workload: PromptWorkload,
    options: BuildOptions,
    budget: Budget,
    *,
    journal_name: str = JOURNAL,
    execution: Execution = HERE,
) -> RunResult:
    """Ask a model about each prompt of some rows; the next run of the build goes on from what is finished.

    Args:
        build: where the journal is.
        rows: rows of ours, or what is known of them.
        workload: who is asked what.
        options: progress.
        budget: of the build.
        journal_name: of a file that no other run of the build writes.
        execution: where the model's servers are.

    Raises:
        ServerError: the model can't be reached; what is finished is kept.
        BudgetError: a limit is reached; what is finished is kept.
    """
    prompts = {row["prompt_id"]: row for row in rows}
    units = [Unit(key, number, row["prompt"], row) for number, (key, row) in enumerate(prompts.items())]
    waiting = report_waiting(options.progress)
    executor = make_executor(workload, budget, workload.recipe.prompts.concurrency, waiting, execution)
    return run_units(build, units, executor, budget, options.progress, journal_name=journal_name)
