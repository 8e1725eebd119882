"""How a prompt becomes a row: all teachers are asked, the gate checks each answer, the judge keeps the best."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar, cast

from stairdata.generators.structured_cot.answer import read_row
from stairdata.generators.structured_cot.plan import TeacherJob
from stairdata.generators.structured_cot.preference_judge import PreferenceJudge
from stairdata.generators.structured_cot.requests import TeacherPrompt
from stairdata.llm.budget import Budget
from stairdata.llm.client import Generation
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import RequestFailedError
from stairdata.llm.session import open_pool
from stairdata.recipe import Teacher
from stairdata.runs.answer_journal import AnswerJournal
from stairdata.runs.units import Unit, UnitFailedError, UnitResult, WorkContext, Workload, clients_of, room_of
from stairdata.search.refusal import is_refusal
from stairdata_schemas.aliases import Row, WaitProgress
from stairdata_schemas.building import Build

T = TypeVar("T")
Ask = Callable[[TeacherPrompt], Awaitable[Generation]]


class Candidate(NamedTuple):
    """A teacher's answer that is fit to be kept."""

    row: Row
    teacher: str
    generation: Generation


class CandidateSelector:
    """Turns prompts into rows, wherever the answers come from: live, or earlier in a batch.

    Args:
        job: whose prompts these are.
        asks: one for each of the job's teachers.
        judge: keeps the better of two candidates.
        answers: keeps what was answered until the prompt's row is written.
    """

    def __init__(
        self, job: TeacherJob, asks: Sequence[Ask], judge: PreferenceJudge | None, answers: AnswerJournal
    ) -> None:
        self._job = job
        self._panel = job.panel
        self._asks = asks
        self._judge = judge
        self._answers = answers

    async def select(self, unit: Unit) -> UnitResult:
        """Ask all teachers about a prompt and keep the best answer.

        Raises:
            UnitFailedError: no answer passed the gate.
            RequestFailedError: no teacher answered, or the judge failed.
        """
        prompt = TeacherPrompt(**unit.payload)
        try:
            result = await self._best(prompt)
        except UnitFailedError:
            self._answers.forget(unit.key)
            raise
        finally:
            self._answers.release(unit.key)
        return result

    async def _best(self, prompt: TeacherPrompt) -> UnitResult:
        found = await _all(self._candidate(index, prompt) for index in range(len(self._asks)))
        candidates = [one for one in found if isinstance(one, Candidate)]
        failures = [one for one in found if not isinstance(one, Candidate)]
        if not candidates:
            raise failures[0]
        counts = Counter(f"candidates_refused_{failure.rule}" for failure in failures)
        scores: list[float] = []
        if len(candidates) > 1:
            assert self._judge is not None
            scores = await self._judge.scores(prompt, [one.row["completion"] for one in candidates])
            counts["ties"] = int(scores.count(max(scores)) > 1)
        best = scores.index(max(scores)) if scores else 0
        return self._result(prompt, candidates, scores, best, counts, failures)

    async def _candidate(self, index: int, prompt: TeacherPrompt) -> Candidate | UnitFailedError | RequestFailedError:
        """Return an answer, or why there is none: another teacher's may do."""
        panel = self._panel
        gate, teacher = panel.recipe.structured_cot.gate, panel.teachers[index]
        try:
            generation = await self._answers.once(
                prompt.prompt_id, f"teacher/{index}/{prompt.ask}", lambda: self._asks[index](prompt)
            )
            row = read_row(prompt.prompt, prompt.task, generation, teacher, gate)
            if await self._complies(prompt, row["completion"]):
                raise UnitFailedError("complied", row["completion"])
        except (UnitFailedError, RequestFailedError) as failure:
            return failure
        return Candidate(row, panel.row_names[index], generation)

    async def _complies(self, prompt: TeacherPrompt, completion: str) -> bool:
        """Ask the judge, where there is one and the prompt's reference answer is unsafe."""
        is_asked = self._panel.recipe.structured_cot.gate.compliance and self._judge is not None
        if not is_asked or prompt.task != "safety" or prompt.reference_is_safe is not False:
            return False
        assert self._judge is not None
        return await self._judge.complies(prompt, completion)

    def _result(
        self,
        prompt: TeacherPrompt,
        candidates: list[Candidate],
        scores: list[float],
        best: int,
        counts: Counter[str],
        failures: Sequence[UnitFailedError | RequestFailedError],
    ) -> UnitResult:
        kept, usage = candidates[best], self._answers.usage(prompt.prompt_id)
        outcomes = Counter(usage.outcomes)
        for failure in failures:
            if isinstance(failure, RequestFailedError):
                outcomes.update(map(str, failure.outcomes))
        if is_refusal(kept.row["completion"]):
            counts[f"refusals_{prompt.task}"] += 1
        if len(self._asks) > 1:
            counts[f"kept_{kept.teacher}"] += 1
        row = kept.row | {
            "teacher": kept.teacher,
            "finish": kept.generation.samples[0].finish,
            "prompt_tokens": kept.generation.prompt_tokens,
            "completion_tokens": kept.generation.completion_tokens,
            "alternatives": [
                {"completion": other.row["completion"], "teacher": other.teacher, "score": scores[index]}
                for index, other in enumerate(candidates)
                if index != best
            ]
            or None,
        }
        return UnitResult(row, dict(counts), dict(outcomes), usage=usage.counts())


async def _all(waiting: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, also where one fails for good: what the others answer is to be kept."""
    results = await asyncio.gather(*waiting, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, UnitFailedError | RequestFailedError):
            raise result
    return cast("list[T]", results)


AskWith = Callable[[EndpointPool, int], Ask]
"""From the servers of a teacher and its number to what asks it."""


@dataclass(frozen=True)
class TeacherWorkload(Workload):
    """Selects the best answer for each unit.

    `ask_with` asks live teachers through their clients; where it is None, `asks` answer in the teachers' place, out of
    batches.
    """

    build: Build | None
    """Where answers are kept until their row is made; None in other processes, which share no journal: what one of them
    was answered is lost with it."""
    job: TeacherJob
    ask_with: AskWith | None
    asks: Sequence[Ask] = ()

    @property
    def asked(self) -> Teacher:
        return self.job.panel.teachers[0]

    def for_replicas(self) -> TeacherWorkload:
        return replace(self, build=None, job=replace(self.job, prompts={}))  # each unit brings its prompt

    @asynccontextmanager
    async def open(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[WorkContext]:
        """Connect to the teachers, unless `asks` answer for them, and to the judge."""
        panel, asks = self.job.panel, self.asks
        section = panel.recipe.structured_cot
        answers = AnswerJournal(self.build if panel.takes_several_requests else None, is_final=self.ask_with is None)
        pools: list[EndpointPool] = []
        async with AsyncExitStack() as stack:
            stack.callback(answers.close)
            if self.ask_with is not None:
                for number, teacher in enumerate(panel.teachers):
                    log = self.folder / f"server-teacher-{number}.log"
                    opening = open_pool(teacher, self.endpoints, log, waiting, budget, is_spread=self.is_spread)
                    pools.append(await stack.enter_async_context(opening))
                asks = [self.ask_with(pool, number) for number, pool in enumerate(pools)]
            judges: list[EndpointPool] = []
            judge = None
            if section.judge is not None:
                urls, log = self.role_endpoints.get("judge", ()), self.folder / "server-judge.log"
                opening = open_pool(section.judge, urls, log, waiting, budget, role="judge")
                judges.append(await stack.enter_async_context(opening))
                judge = PreferenceJudge(section.judge, judges[0], panel.recipe.seed, answers)
            work: Callable[[Unit], Awaitable[UnitResult]] = CandidateSelector(self.job, asks, judge, answers).select
            for pool in pools:
                work = pool.keeping(work)
            pools += judges
            yield WorkContext(work, room_of(pools), clients_of(pools), pools=pools)
