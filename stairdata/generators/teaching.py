"""Structured reasoning by teachers: who is asked, what is kept, and what the manifest says of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import polars as pl
from pydantic import BaseModel

from stairdata.generators.answers import Answers
from stairdata.generators.options import BuildOptions
from stairdata.generators.quality import is_of_the_answer
from stairdata.generators.runner import (
    Done,
    Opened,
    Row,
    RunResult,
    Unit,
    UnitFailedError,
    open_budget,
    run_units,
    table_of_outcomes,
    usage_of,
)
from stairdata.generators.second_opinion import TEMPLATE_VERSION as JUDGE_TEMPLATE_VERSION
from stairdata.generators.second_opinion import SecondOpinion
from stairdata.generators.teacher import LESSON_COLUMNS, Lesson, Templates, make_request, read_row
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client, Generation
from stairdata.llm.outcomes import Outcome, RequestFailedError, has_no_format
from stairdata.llm.session import identify, open_client
from stairdata.recipe import Endpoint, Recipe, Teacher
from stairdata.search.reward import is_refusal
from stairdata_schemas.artifacts import Artifact, iterate_frames
from stairdata_schemas.building import Build, BuildPlan, Report, begin_build, find_finished
from stairdata_schemas.errors import QuarantineError, RecipeError, ServerError, UsageError, quote
from stairdata_schemas.files import write_atomic
from stairdata_schemas.manifest import ModelIdentity

KIND = "structured_cot"
GENERATOR = "structured_cot/2"
BATCHES = "batches"
OF_TEACHERS = ("temperature", "max_tokens", "format")
BATCH_ACTIONS = ("submit", "status", "collect", "cancel")

T = TypeVar("T")
Ask = Callable[[Lesson], Awaitable[Generation]]
Known = Callable[[int, Lesson], Generation | None]
"""The answer of a teacher that came in a batch."""


@dataclass(slots=True)
class Class:
    """A build's prompts, and who teaches."""

    recipe: Recipe
    teachers: list[Teacher]
    models: list[ModelIdentity]
    """The teachers' names as rows tell them, in the teachers' order; the judge comes last."""
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


def build_from_teachers(recipe: Recipe, options: BuildOptions) -> Artifact | None:
    """Build a structured_cot artifact by asking teachers, at once or in batches.

    Raises:
        RecipeError: no teacher, a template that is none, or two teachers without a judge.
        ServerError: a server can't be reached; what is finished is kept.
    """
    pupils = _gather_class(recipe, options)
    begun = _begin(pupils, options)
    if isinstance(begun.build, Artifact):
        if options.batch is not None:
            options.tell(f"{begun.build.reference} is finished{under_way_elsewhere(begun.build.folder)}")
        return begun.build
    with begun.build as build:
        tries = _tries(begun, options)
        pupils.lessons = _lessons(pupils.prompts, options, tries, begun.depth)
        if begun.earlier is not None:
            pupils.wanted = set(tries.failures)
        if options.batch is not None:
            from stairdata.generators.teacher_batches import run_batches

            budget = open_budget(build, recipe, options, pupils.names)
            result = run_batches(build, pupils, options, budget)
            if result is None:
                return None
        else:
            result, budget = _ask_now(build, pupils, options)
        return _finish(build, pupils, begun.earlier, result, budget, options)


def choose_teachers(recipe: Recipe, names: Sequence[str]) -> list[Teacher]:
    """Return the teachers that `--teachers` names, or the recipe's one.

    Raises:
        UsageError: a name twice.
        RecipeError: a name that is neither a teacher nor can be a model, or several without a judge.
    """
    section = recipe.structured_cot
    if not names:
        return [section.teacher]
    if len(set(names)) < len(names):
        raise UsageError(f"--teachers {quote(','.join(names))}: a name stands there twice")
    if len(names) > 1 and section.judge is None:
        raise RecipeError("--teachers with several names needs structured_cot.judge: it keeps the better answer")
    unknown = [name for name in names if name not in section.teachers]
    if unknown and section.teacher.base_url is None:
        known = ", ".join(section.teachers) or "none"
        raise RecipeError(
            f"--teachers: no teacher {quote(unknown[0])} in structured_cot.teachers (there: {known}), and no server "
            "structured_cot.teacher.base_url that could have a model of that name"
        )
    return [section.teachers.get(name) or section.teacher.model_copy(update={"model": name}) for name in names]


# -- what is built -------------------------------------------------------------------------------------------


def _gather_class(recipe: Recipe, options: BuildOptions) -> Class:
    teachers = choose_teachers(recipe, options.teachers)
    if options.batch is not None:
        _check_batch(options, teachers)
    models = [identify(teacher, "teacher", needs_tokenizer=False) for teacher in teachers]
    if recipe.structured_cot.judge is not None:
        models.append(identify(recipe.structured_cot.judge, "judge", needs_tokenizer=False))
    return Class(recipe, teachers, models, Templates(recipe.structured_cot.templates), options.parent("prompts"))


def _check_batch(options: BuildOptions, teachers: list[Teacher]) -> None:
    if options.batch not in BATCH_ACTIONS:
        raise UsageError(f"--batch {quote(options.batch)}: known are {', '.join(BATCH_ACTIONS)}")
    if any(teacher.base_url is None for teacher in teachers):
        raise RecipeError("--batch needs structured_cot.teacher.base_url, such as https://api.openai.com/v1")
    if options.limits.seconds is not None:
        raise UsageError("--max-seconds goes with asking at once; a batch takes as long as it takes")
    if options.fresh and options.batch != "submit":
        raise UsageError(f"--fresh starts over: it leaves nothing for --batch {options.batch}")


class Begun(NamedTuple):
    """A build, or the artifact where there is nothing to do, and what it takes over."""

    build: Build | Artifact
    earlier: Artifact | None
    """The finished artifact whose rows it takes over."""
    depth: int
    """How many artifacts it follows that tried the same prompts."""


def _begin(pupils: Class, options: BuildOptions) -> Begun:
    """Find the build; with --retry-quarantined a finished one is followed by another that takes over its rows."""
    plan, earlier, depth = _plan(pupils, options), None, 0
    while options.retry_quarantined and (found := find_finished(plan, options.root)) is not None:
        if not _refused_of(found):
            options.tell(f"{found.reference} has no prompt in quarantine; there is nothing to try again")
            return Begun(found, None, depth)
        earlier, depth = found, depth + 1
        plan = _plan(pupils, options, earlier)
    if options.fresh:
        _check_nothing_under_way(plan, options)
    return Begun(begin_build(plan, options.root, options.version, fresh=options.fresh), earlier, depth)


def _check_nothing_under_way(plan: BuildPlan, options: BuildOptions) -> None:
    for folder, requests in _under_way(options.root / KIND):
        if plan.fingerprint in (folder / ".build" / "build.json").read_text(encoding="utf-8"):
            raise UsageError(
                f"--fresh would forget {requests} requests that {KIND}@{folder.name} has under way in batches; run "
                "`--batch cancel` first, then `--batch collect`"
            )


def _under_way(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the builds that have requests in batches, and how many."""
    for ledger in sorted(folder.glob(f"*/.build/{BATCHES}/ledger.json")):
        from stairdata.llm.batches import Ledger

        pending = Ledger(ledger.parent).pending()
        if pending:
            yield ledger.parents[2], len(pending)


def under_way_elsewhere(own: Path) -> str:
    """Name builds in other folders that have requests under way: perhaps one of them is meant."""
    others = [
        f"{KIND}@{folder.name} has {requests} requests under way"
        for folder, requests in _under_way(own.parent)
        if folder != own
    ]
    if not others:
        return ""
    return f" (but {', '.join(others)}: with another --limit, recipe, template or input, or with --retry-quarantined)"


class Tries(BaseModel):
    """How often a build tried again what it refused; kept beside its journal."""

    mark: str = ""
    """Which quarantine was looked at last."""
    round: int = 0
    failures: dict[int, str] = {}
    """The rule that each prompt broke that is tried again, by its ordinal."""
    rounds: dict[int, int] = {}
    """In which round each was tried last."""


def _tries(begun: Begun, options: BuildOptions) -> Tries:
    """Return what is to be tried again, and begin a new round where a new quarantine was written."""
    build = begun.build
    assert isinstance(build, Build)
    path = build.work / "tries.json"
    known = Tries.model_validate_json(path.read_bytes()) if path.exists() else Tries()
    if not options.retry_quarantined:
        return known
    source = build if _refused_of(build) else begun.earlier
    if source is None:
        options.tell("nothing is in quarantine yet; all prompts are asked")
        return known
    mark = _mark(source)
    if mark != known.mark:
        failures = _refused_of(source)
        tried = known.rounds | dict.fromkeys(failures, known.round + 1)
        known = Tries(mark=mark, round=known.round + 1, failures=known.failures | failures, rounds=tried)
        write_atomic(path, known.model_dump_json())
    return known


def _mark(there: Build | Artifact) -> str:
    """Tell one writing of the quarantine from the next."""
    files = sorted((there.folder / "quarantine").glob("*.parquet"))
    return ",".join(f"{path.stat().st_mtime_ns}-{path.stat().st_ino}" for path in files)


def _plan(pupils: Class, options: BuildOptions, earlier: Artifact | None = None) -> BuildPlan:
    section, seed = pupils.recipe.structured_cot, pupils.recipe.seed
    configuration: dict[str, Any] = {
        "source": "teacher",
        "teachers": [
            {"name": model.name, "as": called} | teacher.model_dump(mode="json", include=set(OF_TEACHERS))
            for model, teacher, called in zip(pupils.models, pupils.teachers, options.teachers or [None], strict=False)
        ],
        "templates": pupils.templates.hashes,
        "gate": section.gate.model_dump(mode="json"),
        "seed": seed,
        "limit": options.limit,
    }
    if section.judge is not None:
        asked = section.judge.model_dump(mode="json", include={"temperature", "max_tokens", "reasks"})
        configuration["judge"] = asked | {"template": JUDGE_TEMPLATE_VERSION}
    parents = [pupils.prompts.as_parent()]
    if earlier is not None:
        configuration["retries"] = earlier.reference
        parents.append(earlier.as_parent())
    servers = {
        "teachers": [teacher.model_dump(mode="json") for teacher in pupils.teachers],
        "judge": section.judge.model_dump(mode="json") if section.judge else None,
        "batch": section.batch.model_dump(mode="json"),
    }
    return BuildPlan(
        KIND,
        GENERATOR,
        configuration,
        settings={"servers": servers},
        parents=parents,
        models=pupils.models,
        seeds={"sampling": seed},
    )


def _refused_of(there: Build | Artifact) -> dict[int, str]:
    """Return the rule that each refused prompt broke, by the prompt's ordinal."""
    folder = there.folder / "quarantine"
    if not folder.is_dir():
        return {}
    rows = pl.scan_parquet(folder / "*.parquet").filter(pl.col("source") == KIND).select("row", "rule").collect()
    return dict(rows.iter_rows())


def _lessons(prompts: Artifact, options: BuildOptions, tries: Tries, depth: int) -> dict[str, Lesson]:
    lessons = {}
    for number, row in enumerate(options.rows(prompts, LESSON_COLUMNS)):
        rule = tries.failures.get(number)
        # each round and each following artifact asks with a seed of its own
        ask = 0 if rule is None else max(0, depth - 1) + tries.rounds[number]
        failure = rule if rule is not None and is_of_the_answer(rule) else None
        lessons[row["prompt_id"]] = Lesson(**row, failure=failure, ask=ask)
    return lessons


def _finish(
    build: Build, pupils: Class, earlier: Artifact | None, result: RunResult, budget: Budget, options: BuildOptions
) -> Artifact:
    options.tell(table_of_outcomes(result))
    usage = usage_of(result, budget, pupils.names)
    details: dict[str, Any] = {**dict(sorted(result.counts.items())), "requests": result.requests}
    if earlier is not None:
        details["rows_taken_over"] = earlier.manifest.rows
    report = Report(result.outcomes, usage, details=details)
    try:
        return build.finish(_frames(earlier, result), result.refused, report, options.max_quarantine)
    except QuarantineError as error:
        raise QuarantineError(f"{error}; --retry-quarantined asks them again and says what was wrong") from error


def _frames(earlier: Artifact | None, result: RunResult) -> Iterator[pl.DataFrame]:
    if earlier is not None:
        for path in earlier.data_files:
            yield from iterate_frames(path)
    yield from result.frames()


# -- how a prompt becomes a row ------------------------------------------------------------------------------


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
        return Candidate(row, pupils.models[index].name, generation)

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


# -- at once -------------------------------------------------------------------------------------------------


def batch_answers(build: Build, pupils: Class, budget: Budget) -> Known:
    """Return what batches of the same build have answered: that is not asked again.

    Raises:
        UsageError: batches are under way.
    """
    if not (build.work / BATCHES).is_dir():
        return lambda _number, _lesson: None
    from stairdata.generators.teacher_batches import Desk

    desk = Desk(build, pupils, budget)
    desk.forget_unsent()
    if desk.pending:
        raise UsageError(
            f"{len(desk.pending)} requests of {build.reference} are under way in batches; collect them with `--batch "
            "collect`, or cancel them with `--batch cancel` and then collect"
        )
    return desk.known


def _ask_now(build: Build, pupils: Class, options: BuildOptions) -> tuple[RunResult, Budget]:
    budget = open_budget(build, pupils.recipe, options, pupils.names)

    known = batch_answers(build, pupils, budget)

    def ask_with(client: Client, number: int) -> Ask:
        return partial(_ask, client, pupils, number, known)

    work = partial(open_classroom, build, pupils, options, budget, ask_with)
    section = pupils.recipe.structured_cot
    return run_units(build, pupils.units(), work, budget, options, section.concurrency), budget


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


async def _ask(client: Client, pupils: Class, number: int, known: Known, lesson: Lesson) -> Generation:
    earlier = known(number, lesson)
    if earlier is not None:
        return earlier
    teacher = pupils.teachers[number]
    request = make_request(lesson, teacher, pupils.templates, pupils.recipe.seed)
    try:
        return await client.chat(request.messages, max_tokens=request.max_tokens, seed=request.seed, **request.options)
    except RequestFailedError as error:
        if error.outcomes[-1] is Outcome.INVALID_REQUEST and has_no_format(error.detail):
            raise ServerError(
                f"the server of teacher {quote(teacher.name)} has no structured outputs (it says "
                f"{quote(error.detail)}); set structured_cot.teacher.format to text, finished work is kept"
            ) from error
        raise
