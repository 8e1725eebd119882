"""Requests that are answered within a day: submitted in batches, looked at, collected, cancelled, by one run or many.

The invariant: a request is in at most one open batch. Whatever is about to happen is in the ledger before it happens,
and whatever has happened is in the ledger before the next thing is tried, so that a run that is killed at any moment
leaves the next one enough to go on: nothing is submitted twice, and nothing that was answered is lost. How a batch can
stand is in `states`, its files are in `ledger` and `answers`, the talking in `api`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from pathlib import Path

from stairdata.llm.batches.answers import BatchResults, known_ids, shared_refusal, tokens_used
from stairdata.llm.batches.api import BatchApi, answers_limit
from stairdata.llm.batches.files import BatchFiles
from stairdata.llm.batches.ledger import BatchJob, BatchLimits, BatchRequest, Ledger
from stairdata.llm.batches.states import ANSWERED, ENDED, BatchEvent, BatchState
from stairdata.llm.budget import Budget, Expense
from stairdata.llm.client import most_taken
from stairdata.llm.session import open_client
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import BudgetError, RecipeError, ServerError, quote

MOST_LOST = 3
"""Batches of a request that a provider may lose or delete; each was paid for, as far as it was answered."""


class BatchQueue:
    """The batches of one build, on several servers.

    Args:
        folder: where the ledger, the requests and the answers are.
        endpoints: the servers, by URL; the ledger knows them by their number here.
        limits: how large batches may be.
        section: where a recipe sets the limits, for messages.
        budget: what open batches can cost, and closed ones have cost, counts as spent elsewhere.
        files: folder in which new batches are files that somebody runs; default: they go to the servers.

    Raises:
        ArtifactError: the ledger can't be read.
    """

    def __init__(
        self,
        folder: Path,
        endpoints: Sequence[Endpoint],
        limits: BatchLimits,
        section: str,
        budget: Budget,
        files: Path | None = None,
    ) -> None:
        self._ledger = Ledger(folder)
        self._place = str(files.resolve()) if files is not None else None
        if self._place is not None:
            self._move(self._place)
        self._endpoints = endpoints
        self._limits = limits
        self._section = section
        self._budget = budget
        self._apis: dict[tuple[int, str | None], BatchApi | BatchFiles] = {}
        self.results = BatchResults(self._ledger, [endpoint.retries for endpoint in endpoints])
        budget.elsewhere = self._ledger.spent()

    # -- what is known without asking a server -------------------------------------------------------------------

    @property
    def jobs(self) -> Sequence[BatchJob]:
        """All batches that were ever prepared, in order."""
        return self._ledger.jobs

    @property
    def pending(self) -> set[str]:
        """The ids of requests that may still be answered.

        Raises:
            ArtifactError: the files of a batch were removed, so that nobody knows.
        """
        return self._ledger.pending()

    def withdraw_unsent(self) -> None:
        """Close the batches that never left this machine; their requests count as missing."""
        for job in self.jobs:
            if job.is_open and job.file_id is None:
                self._ledger.apply(job, BatchEvent.WITHDRAWN)

    def commands(self) -> list[str]:
        """Return what somebody has to run for the batches in files that are not answered."""
        waiting = [job for job in self.jobs if job.place is not None and job.is_open and job.batch_id is not None]
        return [self._files(job.endpoint, str(job.place)).command(job) for job in waiting if job.state not in ENDED]

    def _move(self, place: str) -> None:
        """Follow batches in files to another folder; those of a server that never left this machine are made anew."""
        for job in self.jobs:
            if job.is_open and job.place is not None:
                job.place = place
            elif job.is_open and job.file_id is None:
                self._ledger.apply(job, BatchEvent.WITHDRAWN)

    def _files(self, endpoint: int, place: str) -> BatchFiles:
        return BatchFiles(Path(place), self._endpoints[endpoint], self._ledger)

    # -- talking to the servers ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def connect(self, endpoints: Iterable[int] = ()) -> AsyncIterator[None]:
        """Connect to the servers that have open batches, and to some others, for all that follows here.

        Raises:
            ServerError: one of them can't be reached, or does not serve the model.
        """
        places = {(job.endpoint, job.place) for job in self.jobs if job.is_open}
        places |= {(number, self._place) for number in endpoints}
        log = self._ledger.folder / "server.log"  # never written: only endpoints with a URL have batches
        async with AsyncExitStack() as stack:
            stack.callback(self._apis.clear)
            for number, place in sorted(places, key=str):
                if place is not None:
                    self._apis[number, place] = self._files(number, place)
                    continue
                opening = open_client(self._endpoints[number], log, budget=self._budget)
                self._apis[number, None] = BatchApi(await stack.enter_async_context(opening), self._limits.window)
            yield

    async def refresh(self) -> None:
        """Ask how the open batches stand.

        Raises:
            ServerError: a server can't be reached, or refuses.
        """
        for job in self.jobs:
            if job.is_open:
                await self._refresh(job)

    async def cancel(self) -> None:
        """End the open batches early; what they have answered can be collected.

        Raises:
            ServerError: a server can't be reached, or refuses.
        """
        for job in self.jobs:
            if job.is_open:
                await self._refresh(job)
                await self._cancel(job)

    async def collect(self) -> list[str]:
        """Fetch the answers of the batches that have ended.

        Returns:
            Why servers refused the requests of a batch, for each that did so for a reason that all of them share (a
            key, a format). Such requests count as missing, not as tried.

        Raises:
            ServerError: a server can't be reached, or refuses.
        """
        refusals = []
        for job in self.jobs:
            if job.is_open and job.state in ANSWERED:
                await self._collect(job)
                refusal = shared_refusal(self._ledger.answer_files(job))
                refusals += [refusal] if refusal else []
        self.results.read()
        self._budget.elsewhere = self._ledger.spent()
        return refusals

    def check_failed(self) -> None:
        """Tell of batches that were refused as a whole, once; then their requests count as missing.

        Raises:
            ServerError: there are such batches.
        """
        failed = [job for job in self.jobs if job.state is BatchState.FAILED and not job.is_closed]
        for job in failed:
            self._ledger.apply(job, BatchEvent.FAILURE_TOLD)
        if failed:
            others = f" (and {len(failed) - 1} others)" if len(failed) > 1 else ""
            raise ServerError(
                f"batch {failed[0].batch_id}{others} was rejected as a whole: {quote(failed[0].error)}; fix what it "
                "says, then `--batch` submits its requests again"
            )

    async def submit(self, endpoint: int, requests: Iterable[BatchRequest]) -> bool:
        """Send what was prepared earlier, then requests, in as many batches as the limits ask for.

        Args:
            endpoint: the number of the server.
            requests: none of them pending or over; drawn as batches are made of them.

        Returns:
            Whether all were sent; False where the rest waits for room in the account's queue.

        Raises:
            ServerError: the server can't be reached, refuses, or loses what it is sent again and again; what is
                prepared is sent by the next call.
            BudgetError: the next request could break a limit; those before it were sent.
            RecipeError: a single request is larger than the queue.
        """
        for prepared in self.jobs:
            if prepared.endpoint == endpoint and prepared.state is BatchState.PREPARED:
                await self._send(prepared)
        kept = self._not_lost(requests)
        waiting: Iterator[tuple[BatchRequest, Expense]] = ((each, self._most(endpoint, each)) for each in kept)
        while (first := next(waiting, None)) is not None:
            room = self._room(endpoint, first[0])
            if room is not None and first[0].prompt_tokens > room:
                return False
            allowed, broken = self._within_budget(chain([first], waiting))
            job, left = self._ledger.prepare(endpoint, allowed, self._limits._replace(prompt_tokens=room), self._place)
            if job is not None:
                self._budget.elsewhere = self._ledger.spent()
                await self._send(job)
            if broken:
                raise BudgetError(
                    f"{broken[0]}; {len(self.pending)} requests are submitted, the others are not: raise "
                    "the limit and run the same command again, or collect"
                )
            waiting = chain([left] if left else [], waiting)
        return True

    def _not_lost(self, requests: Iterable[BatchRequest]) -> Iterator[BatchRequest]:
        """Let requests through until one was lost so often that it would be paid for without end.

        Raises:
            ServerError: there is one.
        """
        lost = self._ledger.times_lost()
        for request in requests:
            if lost[request.id] >= MOST_LOST:
                count = sum(1 for times in lost.values() if times >= MOST_LOST)
                raise ServerError(
                    f"the provider lost or deleted {MOST_LOST} batches with the same requests ({count} of them, such "
                    f"as {quote(request.id)}) before their answers were fetched, so they are not sent again; look at "
                    "the account's batches and how long it keeps files, and ask these prompts live: run the same "
                    "command without `--batch`"
                )
            yield request

    async def _send(self, job: BatchJob) -> None:
        """Upload a prepared batch's requests and make the batch, or go on where an earlier run was stopped."""
        api = self._apis[job.endpoint, job.place]
        if job.file_id is None:
            job.file_id = await api.upload(self._ledger.requests_file(job))
            self._ledger.save()
        self._ledger.note(job, await api.create(job, self._ledger))

    async def _refresh(self, job: BatchJob) -> None:
        api = self._apis[job.endpoint, job.place]
        if job.batch_id is not None:
            report = await api.retrieve(job.batch_id)
            if report is None:
                self._ledger.apply(job, BatchEvent.FORGOTTEN)
        else:  # it may have been made all the same, if its file was uploaded
            report = await api.look_up(job) if job.file_id is not None else None
        if report is not None:
            self._ledger.note(job, report)

    async def _cancel(self, job: BatchJob) -> None:
        api = self._apis[job.endpoint, job.place]
        if job.batch_id is None:
            found = await api.search(job)
            if found is None:
                self._ledger.apply(job, BatchEvent.WITHDRAWN)
                return
            self._ledger.note(job, found)
        if job.batch_id is not None and job.is_open and job.state not in ENDED:
            self._ledger.note(job, await api.cancel(job.batch_id))

    async def _collect(self, job: BatchJob) -> None:
        api, paths = self._apis[job.endpoint, job.place], self._ledger.answer_files(job)
        is_gone = False
        for file_id, path in zip((job.output_file_id, job.error_file_id), paths, strict=True):
            if file_id is not None and not await api.fetch(file_id, path, answers_limit(job)):
                is_gone = True  # what the other file holds counts all the same
        total = Expense()
        share = Expense(job.most_tokens // job.requests, job.most_cost / job.requests)
        for used in tokens_used(paths, known_ids(self._ledger, job), job.most_tokens):
            total = total.plus(share if used is None else self._price(job.endpoint, *used))
        job.spent_tokens, job.spent_cost = total
        self._ledger.apply(job, BatchEvent.FORGOTTEN if is_gone else BatchEvent.ANSWERS_SAVED)

    # -- room and money ------------------------------------------------------------------------------------------

    def _price(self, endpoint: int, prompt_tokens: int, completion_tokens: int) -> Expense:
        name = self._endpoints[endpoint].name
        full = self._budget.price(name, prompt_tokens, completion_tokens)
        price = self._budget.prices.get(name)
        return full._replace(cost=full.cost * (price.batch if price else 1))

    def _most(self, endpoint: int, request: BatchRequest) -> Expense:
        return self._price(endpoint, *most_taken(request.body))

    def _room(self, endpoint: int, request: BatchRequest) -> int | None:
        """Return how many prompt tokens the account's queue still takes; None is no limit."""
        most = self._limits.prompt_tokens
        if most is None:
            return None
        if request.prompt_tokens > most:
            raise RecipeError(
                f"one request of {request.prompt_tokens} prompt tokens is more than "
                f"{self._section}.max_enqueued_tokens {most}"
            )
        # a provider counts the queue by account and model, whichever of our endpoints the requests are from
        accounts = [(each.base_url, each.api_key_env, each.model) for each in self._endpoints]
        sharing = [number for number, account in enumerate(accounts) if account == accounts[endpoint]]
        return most - self._ledger.enqueued(sharing)

    def _within_budget(
        self, requests: Iterable[tuple[BatchRequest, Expense]]
    ) -> tuple[Iterator[tuple[BatchRequest, Expense]], list[str]]:
        """Let requests through as long as the limits hold them all; the list says which one broke."""
        broken: list[str] = []

        def allowed() -> Iterator[tuple[BatchRequest, Expense]]:
            total = Expense()
            for request, most in requests:
                total = total.plus(most)
                reason = self._budget.broken_by(total, "the next requests")
                if reason is not None:
                    broken.append(reason)
                    return
                yield request, most

        return allowed(), broken
