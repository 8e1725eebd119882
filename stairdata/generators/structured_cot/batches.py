"""Teachers through the Batch API: submit and leave, look, collect, cancel.

Answers that came in a batch go the way of those that come at once: the same gate, judge, journal and manifest. What
a batch left unanswered (it expired, was cancelled, a request failed) is submitted again by the next `--batch`, and
nothing else is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import chain
from pathlib import Path

from stairdata.generators.structured_cot.candidates import TeacherWorkload
from stairdata.generators.structured_cot.plan import BATCHES, TeacherJob, under_way_elsewhere
from stairdata.generators.structured_cot.requests import TeacherPrompt, make_request
from stairdata.llm.batch_ledger import ENDED, PREPARED, TURNED_AWAY, Answer, Item, Job, Ledger, Limits, read_answer
from stairdata.llm.batches import BatchApi, is_worth_another_try
from stairdata.llm.budget import Budget, Spent
from stairdata.llm.client import Generation, chat_body, most_read
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.llm.session import open_client
from stairdata.llm.tokens import token_count
from stairdata.runs.answer_journal import kept_names
from stairdata.runs.executors import make_executor
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.row_journal import JOURNAL
from stairdata.runs.runner import RunResult, run_units
from stairdata.runs.units import Unit
from stairdata_schemas.building import Build
from stairdata_schemas.errors import BudgetError, RecipeError, ServerError, UsageError, quote
from stairdata_schemas.files import read_journal


def run_batches(build: Build, job: TeacherJob, action: str, options: BuildOptions, budget: Budget) -> RunResult | None:
    """Do what `--batch` says.

    Returns:
        The rows, where every prompt is decided; None where batches are under way or prompts wait.

    Raises:
        UsageError: nothing was submitted that could be looked at.
        RecipeError: a single request is larger than the queue.
        ServerError: the Batch API can't be reached or refuses; what was submitted is known and kept.
        BudgetError: a limit keeps requests from being submitted.
    """
    desk = TeacherBatches(build.work, job, budget)
    if action != "submit" and not desk.has_jobs:
        raise UsageError(
            f"no batch was submitted for this build{under_way_elsewhere(build.folder)}; `--batch` alone submits one"
        )
    try:
        asyncio.run(desk.act(action))
    finally:
        options.tell(desk.table())
    if action in {"status", "cancel"}:
        return None
    return _collect(build, job, options, budget, desk)


class TeacherBatches:
    """What was asked, what was answered, and what is still to be asked."""

    def __init__(self, work: Path, job: TeacherJob, budget: Budget) -> None:
        self._teacher_job = job
        self._panel = job.panel
        self._budget = budget
        self._ledger = Ledger(work / BATCHES)
        self._log = work / "server.log"
        self._is_waiting = False
        self._rows = {record["key"] for record in read_journal(work / JOURNAL)}
        self._answered_live = {
            self.request_id_of(unit, *name.split("/")[1:])
            for unit, name in kept_names(work)
            if name.startswith("teacher/")
        }
        self._units = [unit for unit in job.units() if unit.key not in self._rows]
        self.answers: dict[str, Answer] = {}
        self.failures: dict[str, list[Outcome]] = {}
        self.details: dict[str, str] = {}
        self._look()

    @property
    def has_jobs(self) -> bool:
        """Tell whether anything was ever submitted."""
        return bool(self._ledger.jobs)

    @property
    def pending(self) -> set[str]:
        """The ids of requests under way."""
        return self._ledger.pending()

    def known(self, teacher: int, prompt: TeacherPrompt) -> Generation | None:
        """Return the answer of a teacher, if it came.

        Raises:
            RequestFailedError: the model refused, or a filter withheld the answer.
        """
        answer = self.answers.get(self.request_id(teacher, prompt))
        return read_answer(answer) if answer else None

    def decided(self) -> list[Unit]:
        """Return the units without a row of which every request is answered, or has failed for good."""
        return [unit for unit in self._units if all(self.is_over(id_) for id_ in self._ids(unit))]

    def is_complete(self) -> bool:
        """Tell whether every unit has a row or is decided."""
        return len(self.decided()) == len(self._units)

    def is_over(self, id_: str) -> bool:
        """Tell whether nothing more is to be asked about a request."""
        return id_ in self.answers or id_ in self._answered_live or self._has_failed(id_)

    def request_id(self, teacher: int, prompt: TeacherPrompt) -> str:
        """Return the id of the request to a teacher about a prompt."""
        return self.request_id_of(prompt.prompt_id, str(teacher), str(prompt.ask))

    @staticmethod
    def request_id_of(prompt_id: str, teacher: str, ask: str) -> str:
        """Put an id together."""
        return f"{prompt_id}-{teacher}-{ask}"

    def unasked(self, teacher: int, prompts: Iterable[TeacherPrompt]) -> Iterator[TeacherPrompt]:
        """Yield the prompts whose request to a teacher is neither answered, nor under way, nor hopeless."""
        pending = self.pending
        for prompt in prompts:
            id_ = self.request_id(teacher, prompt)
            if id_ not in pending and not self.is_over(id_):
                yield prompt

    def forget_unsent(self) -> None:
        """Let go of batches that never left this machine."""
        self._ledger.forget_unsent()

    async def act(self, action: str) -> None:
        """Talk to the servers."""
        wanted = set(range(len(self._panel.teachers))) if action == "submit" else set()
        under_way = {job.teacher for job in self._ledger.jobs if not job.is_collected}
        async with self._open_apis(wanted | under_way) as apis:
            for job in self._ledger.jobs:
                if not job.is_collected and job.status not in {"failed", TURNED_AWAY}:
                    await apis[job.teacher].refresh(job, self._ledger)
                    if action == "cancel":
                        await self._cancel(job, apis[job.teacher])
            if action in {"submit", "collect"}:
                await self._download(apis)
            self._look()
            self._check_failed()
            if action == "submit":
                for teacher, api in apis.items():
                    await self._submit(teacher, api)

    async def _cancel(self, job: Job, api: BatchApi) -> None:
        if job.batch_id is None:
            await api.find(job, self._ledger)
        if job.batch_id is None:
            self._ledger.let_go(job, "cancelled")  # it was never submitted
        elif job.is_pending and job.status not in ENDED:
            await api.cancel(job, self._ledger)

    @asynccontextmanager
    async def _open_apis(self, teachers: set[int]) -> AsyncIterator[dict[int, BatchApi]]:
        async with AsyncExitStack() as stack:
            apis = {}
            for number in sorted(teachers):
                endpoint = self._panel.teachers[number]
                client = await stack.enter_async_context(open_client(endpoint, self._log, budget=self._budget))
                apis[number] = BatchApi(client)
            yield apis

    async def _download(self, apis: dict[int, BatchApi]) -> None:
        blockers: list[str] = []
        for job in self._ledger.jobs:
            if job.is_collected or job.status not in ENDED - {"failed"}:
                continue
            await apis[job.teacher].download(job, self._ledger)
            spent = self._ledger.spent_by(job, partial(self._price, job.teacher))
            job.spent_tokens, job.spent_cost = spent
            job.is_collected = True
            blocker = self._ledger.blocker(job)
            blockers += [blocker] if blocker else []
            self._ledger.save()
        if blockers:
            raise ServerError(
                f"the server refused requests of a batch for a reason that all share ({quote(blockers[0])}); they "
                "count as missing: mend the key or the account, or set structured_cot.teacher.format to text where it "
                "has no structured outputs, then `--batch` submits them again"
            )

    async def _submit(self, teacher: int, api: BatchApi) -> None:
        for prepared in self._ledger.jobs:
            if prepared.teacher == teacher and prepared.status == PREPARED:
                await api.submit(prepared, self._ledger)
        items = self._missing(teacher)
        while (first := next(items, None)) is not None:
            room = self._room(teacher, first)
            if room is not None and first.prompt_tokens > room:
                self._is_waiting = True
                return
            allowed, broken = self._within_budget(chain([first], items))
            job, left = self._ledger.prepare(teacher, allowed, self._limits(room))
            if job is not None:
                self._budget.elsewhere = self._ledger.spent()
                await api.submit(job, self._ledger)
            if broken:
                raise BudgetError(
                    f"{broken[0]}; {len(self.pending)} requests are submitted, the others are not: raise it "
                    "and run the same command again, or collect"
                )
            items = chain([left] if left else [], items)

    def _limits(self, room: int | None) -> Limits:
        section = self._panel.recipe.structured_cot.batch
        return Limits(section.max_requests, section.max_bytes, room)

    def _room(self, teacher: int, item: Item) -> int | None:
        """Return how many prompt tokens may still be enqueued; None is no limit."""
        most = self._panel.recipe.structured_cot.batch.max_enqueued_tokens
        if most is None:
            return None
        if item.prompt_tokens > most:
            raise RecipeError(
                f"one request of {item.prompt_tokens} prompt tokens is more than "
                f"structured_cot.batch.max_enqueued_tokens {most}"
            )
        accounts = [(each.base_url, each.api_key_env, each.model) for each in self._panel.teachers]
        sharing = [number for number, account in enumerate(accounts) if account == accounts[teacher]]
        return most - self._ledger.enqueued(sharing)

    def _within_budget(self, items: Iterable[Item]) -> tuple[Iterator[Item], list[str]]:
        """Let items through as long as the limits hold them all; the list says which one broke."""
        broken: list[str] = []

        def allowed() -> Iterator[Item]:
            total = Spent()
            for item in items:
                total = total.plus(item.most)
                reason = self._budget.broken_by(total, "the next requests")
                if reason is not None:
                    broken.append(reason)
                    return
                yield item

        return allowed(), broken

    def _missing(self, teacher: int) -> Iterator[Item]:
        """Write the requests that are neither answered, nor under way, nor hopeless."""
        panel = self._panel
        who = panel.teachers[teacher]
        count = token_count(who).count
        for prompt in self.unasked(teacher, [self._teacher_job.prompts[unit.key] for unit in self._units]):
            request = make_request(prompt, who, panel.templates, panel.recipe.seed)
            body = chat_body(
                who.model or "",
                request.messages,
                max_tokens=request.max_tokens,
                seed=request.seed,
                **request.options,
            )
            most = self._price(teacher, most_read(body), request.max_tokens)
            yield Item(self.request_id(teacher, prompt), body, count(request.content), most)

    def _price(self, teacher: int, prompt_tokens: int, completion_tokens: int) -> Spent:
        name = self._panel.teachers[teacher].name
        full = self._budget.price(name, prompt_tokens, completion_tokens)
        price = self._budget.prices.get(name)
        return full._replace(cost=full.cost * (price.batch if price else 1))

    def _look(self) -> None:
        self.answers, self.failures, self.details = self._ledger.results()
        self._budget.elsewhere = self._ledger.spent()

    def _check_failed(self) -> None:
        """Stop at batches that were refused as a whole, once: the next `--batch` submits their requests anew."""
        failed = [job for job in self._ledger.jobs if job.status == "failed" and not job.is_collected]
        for job in failed:
            self._ledger.let_go(job, "failed")
        if failed:
            others = f" (and {len(failed) - 1} others)" if len(failed) > 1 else ""
            raise ServerError(
                f"batch {failed[0].batch_id}{others} was refused as a whole: {quote(failed[0].error)}; mend what it "
                "says, then `--batch` submits its requests again"
            )

    def _has_failed(self, id_: str) -> bool:
        outcomes = self.failures.get(id_, [])
        if not outcomes:
            return False
        retries = self._panel.teachers[int(id_.split("-")[1])].retries
        return not is_worth_another_try(outcomes[-1]) or len(outcomes) > retries

    def failure(self, teacher: int, prompt: TeacherPrompt) -> RequestFailedError:
        """Say why there is no answer, and will be none."""
        id_ = self.request_id(teacher, prompt)
        return RequestFailedError(self.failures[id_], self.details[id_])

    def _ids(self, unit: Unit) -> list[str]:
        prompt = self._teacher_job.prompts[unit.key]
        return [self.request_id(teacher, prompt) for teacher in range(len(self._panel.teachers))]

    def table(self) -> str:
        """Return the batches and what is left, for the user."""
        lines = [f"  {'batch':<40}  {'status':<12}  {'answered':>9}  {'failed':>7}  {'of':>7}"]
        for job in self._ledger.jobs:
            status = "collected" if job.is_collected and job.status in {"completed", "expired"} else job.status
            name = job.batch_id or f"(no id yet) {job.key}"
            lines.append(f"  {name:<40}  {status:<12}  {job.completed:>9,}  {job.failed:>7,}  {job.requests:>7,}")
        pending = self._ledger.pending()
        asked = [(unit, id_) for unit in self._units for id_ in self._ids(unit)]
        missing = sum(1 for _, id_ in asked if id_ not in pending and not self.is_over(id_))
        lines.append(
            f"  {len(self._rows):,} rows made, {len(self.decided()):,} prompts answered and not yet rows, "
            f"{len(pending):,} requests under way, {missing:,} missing"
        )
        if self.failures:
            id_, outcomes = next(reversed(self.failures.items()))
            lines.append(
                f"  {len(self.failures):,} requests failed in batches, the last one by {outcomes[-1]}: "
                f"{quote(self.details[id_])}"
            )
        if self._is_waiting:
            lines.append("  the missing wait for room in the queue (max_enqueued_tokens): run `--batch` again later")
        elif missing:
            lines.append("  `--batch` submits the missing")
        if any(not job.is_collected and job.status in ENDED for job in self._ledger.jobs):
            lines.append("  `--batch collect` makes rows of what has ended")
        return "\n".join(["batches:", *lines])


def _collect(
    build: Build, job: TeacherJob, options: BuildOptions, budget: Budget, desk: TeacherBatches
) -> RunResult | None:
    """Make rows of what is answered; the result counts only once all is."""
    is_complete = desk.is_complete()
    units = job.units() if is_complete else desk.decided()
    recipe = job.panel.recipe
    asks = [partial(_ask, desk, index) for index in range(len(job.panel.teachers))]
    workload = TeacherWorkload(recipe, build.work, build, job, None, asks)
    executor = make_executor(workload, budget, recipe.structured_cot.concurrency, report_waiting(options.progress))
    result = run_units(build, units, executor, budget, options.progress)
    return result if is_complete else None


async def _ask(desk: TeacherBatches, teacher: int, prompt: TeacherPrompt) -> Generation:
    """Return the answer out of a batch."""
    answer = desk.known(teacher, prompt)
    if answer is None:
        raise desk.failure(teacher, prompt)
    return answer
