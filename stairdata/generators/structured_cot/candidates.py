"""How a prompt becomes a row: all teachers are asked, the gate looks at each answer, the judge keeps the best."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

from stairdata.generators.structured_cot.preference_judge import SecondOpinion
from stairdata.generators.structured_cot.requests import Lesson, Templates, read_row
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client, Generation
from stairdata.llm.outcomes import RequestFailedError
from stairdata.llm.session import open_client
from stairdata.recipe import Endpoint, Recipe, Teacher
from stairdata.runs.answer_journal import Answers
from stairdata.runs.options import BuildOptions
from stairdata.runs.runner import (
    Done,
    Opened,
    Row,
    Unit,
    UnitFailedError,
)
from stairdata.search.reward import is_refusal
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build
from stairdata_schemas.manifest import ModelIdentity

T = TypeVar("T")
Ask = Callable[[Lesson], Awaitable[Generation]]


@dataclass(slots=True)
class Class:
    """A build's prompts, and who teaches."""

    recipe: Recipe
    teachers: list[Teacher]
    called: list[str]
    """What rows call the teachers: the model's name, or the recipe's for the teacher where two have one model."""
    models: list[ModelIdentity]
    """The teachers', in their order; the judge's comes last."""
    templates: Templates
    prompts: Artifact
    lessons: dict[str, Lesson] = field(default_factory=dict)
    wanted: set[int] | None = None
    """The ordinals of those that are to be taught; None is all."""

    def units(self) -> list[Unit]:
        """Return the prompts as units of work."""
        units = (Unit(key, number, lesson.prompt) for number, (key, lesson) in enumerate(self.lessons.items()))
        return [unit for unit in units if self.wanted is None or unit.number in self.wanted]

    @property
    def takes_several_requests(self) -> bool:
        """Tell whether a row may take more than one request."""
        return len(self.teachers) > 1 or self.recipe.structured_cot.judge is not None

    @property
    def names(self) -> list[str]:
        """Names of all models, for their prices."""
        judge = self.recipe.structured_cot.judge
        return [teacher.name for teacher in self.teachers] + ([judge.name] if judge else [])


class Candidate(NamedTuple):
    """A teacher's answer that is fit to be kept."""

    row: Row
    teacher: str
    generation: Generation


class Classroom:
    """Turns prompts into rows, whoever answers, at once or earlier in a batch."""

    def __init__(self, pupils: Class, asks: Sequence[Ask], opinion: SecondOpinion | None, answers: Answers) -> None:
        self._pupils = pupils
        self._asks = asks
        self._opinion = opinion
        self._answers = answers

    async def teach(self, unit: Unit) -> Done:
        """Ask all teachers about a prompt and keep the best answer.

        Raises:
            UnitFailedError: no answer passed the gate.
            RequestFailedError: no teacher answered, or the judge failed.
        """
        lesson = self._pupils.lessons[unit.key]
        try:
            done = await self._best(lesson)
        except UnitFailedError:
            self._answers.forget(unit.key)
            raise
        finally:
            self._answers.release(unit.key)
        return done

    async def _best(self, lesson: Lesson) -> Done:
        found = await _all(self._candidate(index, lesson) for index in range(len(self._asks)))
        candidates = [one for one in found if isinstance(one, Candidate)]
        failures = [one for one in found if not isinstance(one, Candidate)]
        if not candidates:
            raise failures[0]
        counts = Counter(f"candidates_refused_{failure.rule}" for failure in failures)
        scores: list[float] = []
        if len(candidates) > 1:
            assert self._opinion is not None
            scores = await self._opinion.scores(lesson, [one.row["completion"] for one in candidates])
            counts["ties"] = int(scores.count(max(scores)) > 1)
        best = scores.index(max(scores)) if scores else 0
        return self._done(lesson, candidates, scores, best, counts, failures)

    async def _candidate(self, index: int, lesson: Lesson) -> Candidate | UnitFailedError | RequestFailedError:
        """Return an answer, or why there is none: another teacher's may do."""
        pupils = self._pupils
        gate, teacher = pupils.recipe.structured_cot.gate, pupils.teachers[index]
        try:
            generation = await self._answers.once(
                lesson.prompt_id, f"teacher/{index}/{lesson.ask}", lambda: self._asks[index](lesson)
            )
            row = read_row(lesson, generation, teacher, gate)
            if await self._complies(lesson, row["completion"]):
                raise UnitFailedError("complied", row["completion"])
        except (UnitFailedError, RequestFailedError) as failure:
            return failure
        return Candidate(row, pupils.called[index], generation)

    async def _complies(self, lesson: Lesson, completion: str) -> bool:
        """Ask the judge, where there is one and the prompt's reference answer is unsafe."""
        is_asked = self._pupils.recipe.structured_cot.gate.compliance and self._opinion is not None
        if not is_asked or lesson.task != "safety" or lesson.reference_is_safe is not False:
            return False
        assert self._opinion is not None
        return await self._opinion.complies(lesson, completion)

    def _done(
        self,
        lesson: Lesson,
        candidates: list[Candidate],
        scores: list[float],
        best: int,
        counts: Counter[str],
        failures: Sequence[UnitFailedError | RequestFailedError],
    ) -> Done:
        kept, usage = candidates[best], self._answers.usage(lesson.prompt_id)
        outcomes = Counter(usage.outcomes)
        for failure in failures:
            if isinstance(failure, RequestFailedError):
                outcomes.update(map(str, failure.outcomes))
        if is_refusal(kept.row["completion"]):
            counts[f"refusals_{lesson.task}"] += 1
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
        used = {name: getattr(usage, name) for name in ("requests", "prompt_tokens", "completion_tokens")}
        return Done(row, dict(counts), dict(outcomes), usage=used if self._pupils.takes_several_requests else None)


async def _all(waiting: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, also where one fails for good: what the others answer is to be kept."""
    results = await asyncio.gather(*waiting, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, UnitFailedError | RequestFailedError):
            raise result
    return cast("list[T]", results)


@asynccontextmanager
async def open_classroom(
    build: Build,
    pupils: Class,
    options: BuildOptions,
    budget: Budget,
    ask_with: Callable[[Client, int], Ask] | None,
    asks: Sequence[Ask] = (),
) -> AsyncIterator[Opened]:
    """Connect to the teachers, unless `asks` answer for them, and to the judge."""
    section = pupils.recipe.structured_cot
    answers = Answers(build, is_kept=pupils.takes_several_requests, is_final=ask_with is None)
    clients: list[Client] = []
    async with AsyncExitStack() as stack:
        stack.callback(answers.close)

        async def connect(endpoint: Endpoint, role: str) -> Client:
            log = build.work / f"server-{role}.log"
            client = await stack.enter_async_context(open_client(endpoint, log, options.waiting, budget))
            clients.append(client)
            return client

        if ask_with is not None:
            asks = [
                ask_with(await connect(teacher, f"teacher-{number}"), number)
                for number, teacher in enumerate(pupils.teachers)
            ]
        opinion = None
        if section.judge is not None:
            judge = await connect(section.judge, "judge")
            opinion = SecondOpinion(section.judge, judge, pupils.recipe.seed, answers)

        async def room() -> None:
            for client in clients:
                await client.window.room()

        yield Opened(Classroom(pupils, asks, opinion, answers).teach, room, clients)
