"""Teachers through the Batch API: submit and leave, look, collect, cancel.

Answers that came in a batch go the way of those that come at once: the same gate, judge, journal and manifest. What
a batch left unanswered (it expired, was cancelled, a request failed) is submitted again by the next `--batch`, and
nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from stairdata.generators.structured_cot.candidates import TeacherWorkload
from stairdata.generators.structured_cot.plan import RETRYING, TeacherJob
from stairdata.generators.structured_cot.requests import TeacherPrompt, make_request
from stairdata.llm.batches.ledger import BatchLimits, BatchRequest
from stairdata.llm.batches.queue import BatchQueue
from stairdata.llm.budget import Budget
from stairdata.llm.client import Generation, chat_body, without_control_tokens
from stairdata.llm.outcomes import ControlTokensError, RequestFailedError
from stairdata.llm.tokens import token_count
from stairdata.runs.answer_journal import kept_names
from stairdata.runs.batching.options import BATCHES, LIMITS, under_way_elsewhere
from stairdata.runs.batching.table import batch_table
from stairdata.runs.event_loop import run_to_end
from stairdata.runs.executors.executor import make_executor
from stairdata.runs.options import BatchOptions, BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.row_journal import JOURNAL
from stairdata.runs.runner import RunResult, run_units
from stairdata.runs.units import Unit
from stairdata_schemas.building import Build
from stairdata_schemas.errors import ServerError, UsageError, quote
from stairdata_schemas.files import read_journal


def run_batches(
    build: Build, job: TeacherJob, asking: BatchOptions, options: BuildOptions, budget: Budget
) -> RunResult | None:
    """Do what `--batch` says.

    Returns:
        The rows, where every prompt is decided; None where batches are under way or prompts wait.

    Raises:
        UsageError: nothing was submitted that could be looked at.
        RecipeError: a single request is larger than the queue.
        ServerError: the Batch API can't be reached or refuses; what was submitted is known and kept.
        BudgetError: a limit keeps requests from being submitted.
    """
    action = asking.action
    batches = TeacherBatches(build.work, job, budget, asking.files)
    if action != "submit" and not batches.queue.jobs:
        raise UsageError(
            f"no batch was submitted for this build{under_way_elsewhere(build.folder, RETRYING)}; `--batch` alone "
            "submits one"
        )
    try:
        run_to_end(batches.act(action))
    finally:
        options.tell(batches.table())
    if action in {"status", "cancel"}:
        return None
    return _collect(build, job, options, budget, batches)


class TeacherBatches:
    """What teachers were asked in batches, what they answered, and what is still to be asked."""

    def __init__(self, work: Path, job: TeacherJob, budget: Budget, files: Path | None = None) -> None:
        self._job = job
        self._panel = job.panel
        section = job.panel.recipe.structured_cot.batch
        limits = BatchLimits(*(getattr(section, name) for name in LIMITS))
        self.queue = BatchQueue(work / BATCHES, job.panel.teachers, limits, "structured_cot.batch", budget, files)
        self._is_waiting = False
        self._rows = {record["key"] for record in read_journal(work / JOURNAL)}
        self._answered_live = {
            _request_id(unit, *name.split("/")[1:]) for unit, name in kept_names(work) if name.startswith("teacher/")
        }
        self._units = [unit for unit in job.units() if unit.key not in self._rows]
        self._refused = self._with_control_tokens()

    def known(self, teacher: int, prompt: TeacherPrompt) -> Generation | None:
        """Return the answer of a teacher, if it came.

        Raises:
            RequestFailedError: the model refused, or a filter withheld the answer.
        """
        return self.queue.results.answer(self.request_id(teacher, prompt))

    def failure(self, teacher: int, prompt: TeacherPrompt) -> RequestFailedError:
        """Return why there is no answer, and will be none."""
        id_ = self.request_id(teacher, prompt)
        if id_ in self._refused:
            return self._refused[id_]
        failure = self.queue.results.failures[id_]
        return RequestFailedError(failure.outcomes, failure.detail)

    def decided(self) -> list[Unit]:
        """Return the units without a row of which every request is answered, or has failed for good."""
        return [unit for unit in self._units if all(self.is_over(id_) for id_ in self._ids(unit))]

    def is_complete(self) -> bool:
        """Return whether every unit has a row or is decided."""
        return len(self.decided()) == len(self._units)

    def is_over(self, id_: str) -> bool:
        """Return whether nothing more is to be asked about a request."""
        return id_ in self._answered_live or id_ in self._refused or self.queue.results.is_over(id_)

    def request_id(self, teacher: int, prompt: TeacherPrompt) -> str:
        """Return the id of the request to a teacher about a prompt."""
        return _request_id(prompt.prompt_id, str(teacher), str(prompt.ask))

    def unasked(self, teacher: int, prompts: Iterable[TeacherPrompt]) -> Iterator[TeacherPrompt]:
        """Yield the prompts whose request to a teacher is neither answered, nor under way, nor hopeless."""
        pending = self.queue.pending
        for prompt in prompts:
            id_ = self.request_id(teacher, prompt)
            if id_ not in pending and not self.is_over(id_):
                yield prompt

    async def act(self, action: str) -> None:
        """Do what `--batch` says at the servers.

        Raises:
            RecipeError: a single request is larger than the queue.
            ServerError: the Batch API can't be reached, or refused a batch as a whole or for all that it asks.
            BudgetError: a limit keeps requests from being submitted.
        """
        teachers = range(len(self._panel.teachers)) if action == "submit" else ()
        async with self.queue.connect(teachers):
            await (self.queue.cancel() if action == "cancel" else self.queue.refresh())
            if action in {"submit", "collect"}:
                await self._collect_answers()
            self.queue.check_failed()
            for teacher in teachers:
                self._is_waiting |= not await self.queue.submit(teacher, self._missing(teacher))

    async def _collect_answers(self) -> None:
        refusals = await self.queue.collect()
        if refusals:
            raise ServerError(
                f"the server rejected requests of a batch for a reason that affects all ({quote(refusals[0])}); they "
                "count as missing: fix the key or the account, or set structured_cot.teacher.format to text if it "
                "has no structured outputs; then `--batch` submits them again"
            )

    def _missing(self, teacher: int) -> Iterator[BatchRequest]:
        """Write the requests that are neither answered, nor under way, nor hopeless."""
        panel = self._panel
        who = panel.teachers[teacher]
        count = token_count(who).count
        for prompt in self.unasked(teacher, [self._job.prompts[unit.key] for unit in self._units]):
            request = make_request(prompt, who, panel.templates, panel.recipe.seed)
            body = chat_body(
                who.name,
                without_control_tokens(request.messages, who),
                who,
                max_tokens=request.max_tokens,
                seed=request.seed,
                **request.options,
            )
            yield BatchRequest(self.request_id(teacher, prompt), body, count(request.content))

    def _with_control_tokens(self) -> dict[str, ControlTokensError]:
        """Return the requests that are refused before they are sent."""
        refused = {}
        panel = self._panel
        for teacher, who in enumerate(panel.teachers):
            for unit in self._units if who.control_tokens == "refuse" else ():
                prompt = self._job.prompts[unit.key]
                try:
                    without_control_tokens(make_request(prompt, who, panel.templates, panel.recipe.seed).messages, who)
                except ControlTokensError as error:
                    refused[self.request_id(teacher, prompt)] = error
        return refused

    def _ids(self, unit: Unit) -> list[str]:
        prompt = self._job.prompts[unit.key]
        return [self.request_id(teacher, prompt) for teacher in range(len(self._panel.teachers))]

    def table(self) -> str:
        """Return the batches and what is left, for the user."""
        pending = self.queue.pending
        asked = [id_ for unit in self._units for id_ in self._ids(unit)]
        missing = sum(1 for id_ in asked if id_ not in pending and not self.is_over(id_))
        counts = (
            f"{len(self._rows):,} rows made, {len(self.decided()):,} prompts answered and not yet rows, "
            f"{len(pending):,} requests in progress, {missing:,} missing"
        )
        return batch_table(self.queue, counts, missing=missing > 0, is_waiting=self._is_waiting)


def _request_id(prompt_id: str, teacher: str, ask: str) -> str:
    return f"{prompt_id}-{teacher}-{ask}"


def _collect(
    build: Build, job: TeacherJob, options: BuildOptions, budget: Budget, batches: TeacherBatches
) -> RunResult | None:
    """Make rows of what is answered; the result counts only once all is."""
    is_complete = batches.is_complete()
    units = job.units() if is_complete else batches.decided()
    recipe = job.panel.recipe
    asks = [partial(_ask, batches, index) for index in range(len(job.panel.teachers))]
    workload = TeacherWorkload(recipe, build.work, build, job, None, asks)
    executor = make_executor(workload, budget, recipe.structured_cot.concurrency, report_waiting(options.progress))
    result = run_units(build, units, executor, budget, options.progress)
    return result if is_complete else None


async def _ask(batches: TeacherBatches, teacher: int, prompt: TeacherPrompt) -> Generation:
    """Return the answer out of a batch."""
    answer = batches.known(teacher, prompt)
    if answer is None:
        raise batches.failure(teacher, prompt)
    return answer
