"""Trees on a Ray cluster: prompts in, trees out, one stateful actor for each server or each GPU.

Ray Data hands out the prompts, restarts actors that die and gives their prompts out again. A tree depends on nothing
but its seed and its server's answers, so the rows are those of the local executor. Journals of running trees stand in
the build's folder where an actor sees it (one machine, a shared disk), else in a temporary folder of its own.

Limits on tokens and cost are checked here as trees come in: what is in flight then is over them. They are exact with
the local executor alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stairdata.generators.fleet import Fleet, open_fleet
from stairdata.generators.growing import Prompt
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import Done, Record, Run, RunResult, Unit
from stairdata.llm.budget import Budget, Expense, StoppedError
from stairdata.llm.outcomes import JudgeFailedError, Outcome, RequestFailedError
from stairdata.recipe import Recipe
from stairdata_schemas.building import Build
from stairdata_schemas.errors import ServerError, StairDataError, UsageError

TREES_AT_ONCE = 64
CALLS = 2  # calls handed to an actor, as a multiple of those it works on at once
CPUS = 0.1  # an actor mostly waits for its server


@dataclass(frozen=True, slots=True)
class Job:
    """What an actor has to know."""

    recipe: dict[str, Any]
    urls: tuple[str, ...]
    """One for each actor; none where each actor serves the model itself."""
    name: str
    work: str


class Seats:
    """Gives each actor a server of its own; one that was restarted gets its old one."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, actor_id: str) -> int:
        """Return the seat of an actor."""
        return self._taken.setdefault(actor_id, len(self._taken))


class Leftovers:
    """Journals of trees that have come in, removed when as many more have as can be under way.

    An actor that dies right behind a tree it brought is asked for the same tree again: it then finds its answers.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._paths: deque[Path] = deque()

    def add(self, path: Path) -> None:
        """Keep the newest one, remove the oldest."""
        self._paths.append(path)
        if len(self._paths) > self._most:
            self._paths.popleft().unlink(missing_ok=True)

    def __enter__(self) -> Leftovers:
        return self

    def __exit__(self, *_: object) -> None:
        while self._paths:
            self._paths.popleft().unlink(missing_ok=True)


class TreeWorker:
    """An actor of Ray Data: grows a tree for each call, many at a time on one event loop."""

    def __init__(self, job: Job, seats: Any) -> None:
        import ray

        self._recipe = Recipe.model_validate(job.recipe)
        self._name = job.name
        self._urls = job.urls
        if job.urls:
            seat = ray.get(seats.take.remote(ray.get_runtime_context().get_actor_id()))
            self._urls = (job.urls[seat % len(job.urls)],)
        self._work = Path(job.work) if Path(job.work).is_dir() else Path(tempfile.mkdtemp(prefix="stairdata-"))
        self._budget = Budget(prices=self._recipe.prices)
        self._reported = Expense()
        self._stack = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._fleet: Fleet | None = None
        self._failure = ""
        try:
            self._fleet = self._wait_for(self._open())
        except StairDataError as error:  # told with each tree: an actor that can't be made would be made for ever
            self._failure = str(error)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Grow one tree.

        Args:
            item: `key` and `prompt`, the latter as JSON.

        Returns:
            `key`, and `result` as JSON: the tree, or how it failed, and what was spent since the last result.
        """
        prompt = Prompt(**json.loads(item["prompt"]))
        result = self._wait_for(self._grow(item["key"], prompt))
        return {"key": item["key"], "result": json.dumps(result)}

    async def _open(self) -> Fleet:
        opening = open_fleet(self._recipe, BuildOptions(endpoints=self._urls), self._budget, self._name, self._work)
        fleet, _ = await self._stack.enter_async_context(opening)
        return fleet

    async def _grow(self, key: str, prompt: Prompt) -> dict[str, Any]:
        if self._fleet is None:
            return {"gone": self._failure, "spent": [0, 0.0]}
        result: dict[str, Any]
        try:
            done = await self._fleet.grow(key, prompt)
            result = {"done": [done.row, done.counts, done.outcomes, str(done.leftover)]}
        except RequestFailedError as error:
            result = {"failed": [error.outcomes, error.detail, isinstance(error, JudgeFailedError), error.before]}
        except ServerError as error:
            result = {"gone": str(error)}
        spent = self._budget.spent
        tokens, cost = spent.tokens - self._reported.tokens, spent.cost - self._reported.cost
        self._reported = spent
        return result | {"spent": [tokens, cost]}

    def _wait_for(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def run_on_ray(
    build: Build,
    units: Sequence[Unit],
    prompts: dict[str, Prompt],
    recipe: Recipe,
    options: BuildOptions,
    budget: Budget,
) -> RunResult:
    """Grow trees on a Ray cluster, journaled here as they come in.

    Raises:
        UsageError: Ray isn't installed.
        ServerError: all servers are gone; what is finished is kept.
        BudgetError: a limit is reached; what is finished is kept.
    """
    record = Record(build)
    run = Run(build, record, budget, options, len(units))
    missing = record.missing(units, options.pilot)
    by_key = {unit.key: unit for unit in missing}
    gone: list[str] = []
    try:
        if missing:
            sections = recipe.model_dump(mode="json", include=set(Recipe.model_fields))  # not those of training
            job = Job(sections, _urls(recipe, options), build.plan.models[0].name, str(build.work.resolve()))
            items = [{"key": unit.key, "prompt": json.dumps(prompts[unit.key]._asdict())} for unit in missing]
            with _cluster(options.address), Leftovers(CALLS * _at_once(recipe) * _size(job)[0]) as leftovers:
                for key, result in _stream(items, job, recipe):
                    _take(run, by_key[key], result, budget, gone, leftovers)
    finally:
        record.close()
    if gone:
        raise ServerError(gone[0])
    return run.result(units)


def _take(run: Run, unit: Unit, result: dict[str, Any], budget: Budget, gone: list[str], leftovers: Leftovers) -> None:
    budget.charge(Expense(*result["spent"]))
    if "done" in result:
        row, counts, outcomes, leftover = result["done"]
        run.keep(unit, Done(row, counts, outcomes))
        leftovers.add(Path(leftover))
    elif "failed" in result:
        outcomes, detail, is_judge, before = result["failed"]
        error = (JudgeFailedError if is_judge else RequestFailedError)([Outcome(name) for name in outcomes], detail)
        error.before = before
        run.refuse(unit, error)
    else:
        gone.append(result["gone"])
    try:
        budget.check_spent()
    except StoppedError:
        assert budget.reason is not None
        raise budget.reason from None


def _stream(items: list[dict[str, Any]], job: Job, recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    import ray
    import ray.data

    actors, gpus = _size(job)
    at_once = _at_once(recipe)
    seats = ray.remote(Seats).options(num_cpus=0).remote()
    grown = ray.data.from_items(items, override_num_blocks=len(items)).map(
        TreeWorker,  # type: ignore[arg-type]  # Ray makes it, with the arguments below
        fn_constructor_args=(job, seats),
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=CALLS * at_once,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=True,
        ),
        num_cpus=None if gpus else CPUS,
        num_gpus=gpus or None,
    )
    for row in grown.iter_rows():
        yield str(row["key"]), json.loads(row["result"])


def _at_once(recipe: Recipe) -> int:
    return TREES_AT_ONCE if recipe.trees.concurrency == "auto" else recipe.trees.concurrency


def _size(job: Job) -> tuple[int, int]:
    """Return the number of actors and the GPUs of each."""
    import ray

    if job.urls:
        return len(job.urls), 0
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(resources.get("GPU", 0))
    return (gpus, 1) if gpus else (1, 0)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("--executor ray needs Ray: pip install 'stairdata[ray]'") from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _urls(recipe: Recipe, options: BuildOptions) -> tuple[str, ...]:
    if options.endpoints:
        return options.endpoints
    return (recipe.actor.base_url,) if recipe.actor.base_url else ()
