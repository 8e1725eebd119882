"""Kind `trees`: SI-MCTS on a served model, many trees at once, resumable to the request.

Every answered request of a running tree is journaled. A search depends on nothing but its seed and the results
it is sent, so after a kill it is replayed from the journal and goes on where it stood: a crash costs the requests
in flight and no others.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.judges import Judge as JudgeModel
from stairdata.generators.judges import open_judge
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import Done, Row, RunResult, Unit, counts_of, journaled_frames, run_units, usage_of
from stairdata.llm.actor import Actor, Usage
from stairdata.llm.session import identify, open_client
from stairdata.recipe import Recipe, TreesSection
from stairdata.search import mcts
from stairdata.search.mcts import Judge, Request, RestSample, Result, SampleRest, SampleSteps, StepSample
from stairdata.search.reward import Reward
from stairdata_schemas import identity, rendering
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, Report, begin_build
from stairdata_schemas.files import Journal, read_journal

GENERATOR = "trees/1"
_NOT_ROWS = {"concurrency"}


class _Answered(NamedTuple):
    """A result and what it used up."""

    result: Result
    usage: Usage


class _Prompt(NamedTuple):
    prompt_id: str
    prompt: str
    task: str
    reference_answer: str | None


def build_trees(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Grow a tree from each prompt.

    Raises:
        ServerError: the server can't be started or has gone; what is finished is kept.
        QuarantineError: too many trees could not be finished.
    """
    parent = options.parent("prompts")
    models = [identify(recipe.actor, "actor")]
    judge_endpoint = recipe.trees.judge.endpoint
    if judge_endpoint is not None:
        models.append(identify(judge_endpoint, "judge", needs_tokenizer=False))
    plan = BuildPlan(
        "trees",
        GENERATOR,
        {**_row_settings(recipe.trees), "seed": recipe.seed, "limit": options.limit},
        settings={"actor": recipe.actor.model_dump(mode="json")},
        parents=[parent.as_parent()],
        models=models,
        seeds={"search": recipe.seed},
    )
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        units, prompts = _units(parent, recipe, options)
        result = asyncio.run(_grow_all(build, recipe, units, prompts, options))
        return build.finish(
            journaled_frames(build, units),
            result.refused,
            _report(build, recipe, units, result),
            max_quarantine=options.max_quarantine,
        )


def _row_settings(section: TreesSection) -> dict[str, Any]:
    settings = section.model_dump(mode="json", exclude=_NOT_ROWS)
    settings["judge"].pop("endpoint")  # counts as a model
    return settings


def _units(parent: Artifact, recipe: Recipe, options: BuildOptions) -> tuple[list[Unit], dict[str, _Prompt]]:
    units, prompts = [], {}
    for number, row in enumerate(options.rows(parent, list(_Prompt._fields))):
        prompt = _Prompt(**row)
        for ordinal in range(recipe.trees.trees_per_prompt):
            key = identity.tree_id(prompt.prompt_id, recipe.seed, ordinal)
            units.append(Unit(key, number, prompt.prompt))
            prompts[key] = prompt
    return units, prompts


async def _grow_all(
    build: Build, recipe: Recipe, units: list[Unit], prompts: dict[str, _Prompt], options: BuildOptions
) -> RunResult:
    async with _open_grower(build, recipe, options) as grower:
        return await run_units(
            build,
            units,
            lambda unit: grower.grow(unit.key, prompts[unit.key]),
            recipe.trees.concurrency,
            options.progress,
        )


@asynccontextmanager
async def _open_grower(build: Build, recipe: Recipe, options: BuildOptions) -> AsyncIterator[Grower]:
    def waiting(message: str, seconds: float) -> None:
        options.progress(f"{message} ({seconds:.0f} s)", 0, 0)

    async with open_client(recipe.actor, build.work / "server.log", waiting) as client:
        tokenizer = rendering.load_tokenizer(recipe.actor.tokenizer or recipe.actor.path or "")
        actor = Actor(client, tokenizer, recipe.trees, recipe.actor.max_model_len)
        async with open_judge(recipe.trees, client, build.work / "judge.log", waiting) as judge:
            name = build.plan.models[0].name
            yield Grower(recipe, actor, judge, name, build.work / "running")


class Grower:
    """Grows one tree at a time for as many callers as there are."""

    def __init__(self, recipe: Recipe, actor: Actor, judge: JudgeModel, name: str, running: Path) -> None:
        self._recipe = recipe
        self._section = recipe.trees
        self._actor = actor
        self._judge = judge
        self._name = name
        self._running = running

    async def grow(self, tree_id: str, prompt: _Prompt) -> Done:
        """Grow a tree, from its journal as far as that goes."""
        started = time.monotonic()
        fetch = Fetch(self._recipe, self._actor, self._judge, tree_id, prompt)
        search = mcts.search(
            _search_config(self._section),
            random.Random(f"{self._recipe.seed}/{tree_id}"),  # noqa: S311
            fetch.prompt_tokens,
        )
        path = self._running / f"{tree_id}.jsonl"
        known = {record["call"]: _from_record(record) for record in read_journal(path)}
        journal = Journal(path)
        try:
            tree, usage = await drive(search, fetch, known, journal)
        finally:
            journal.close()
        row = _tree_row(tree_id, prompt, tree, self._recipe, self._name)
        path.unlink()
        spent = usage._asdict() | {"seconds": round(time.monotonic() - started, 3)}
        counts = {
            "nodes": len(tree.nodes),
            "evaluations": tree.evaluations,
            "duplicate_steps": tree.duplicates,
            "cut_steps": tree.cut_steps,
        }
        return Done(row | spent, counts)


async def drive(
    search: mcts.Search,
    fetch: Fetch,
    known: dict[int, _Answered],
    journal: Journal,
) -> tuple[mcts.Tree, Usage]:
    """Run a search to its end: answer each request from what is known, else fetch and journal it."""
    total = Usage(0, 0, 0)

    async def answer(request: Request) -> _Answered:
        if request.call in known:
            fetch.recall(request, known[request.call])
            return known[request.call]
        answered = await fetch(request)
        journal.append(_to_record(request.call, answered))
        return answered

    batch = next(search)
    while True:
        answers = await _gather([answer(request) for request in batch])
        for answered in answers:
            total = Usage(*(mine + its for mine, its in zip(total, answered.usage, strict=True)))
        try:
            batch = search.send([answered.result for answered in answers])
        except StopIteration as stop:
            return stop.value, total


async def _gather(waiting: list[Awaitable[_Answered]]) -> list[_Answered]:
    if len(waiting) == 1:
        return [await waiting[0]]
    answers = await asyncio.gather(*waiting, return_exceptions=True)  # the others' answers are journaled too
    for answered in answers:
        if isinstance(answered, BaseException):
            raise answered
    return [answered for answered in answers if not isinstance(answered, BaseException)]


class Fetch:
    """Fetches what one tree's search asks for."""

    def __init__(self, recipe: Recipe, actor: Actor, judge: JudgeModel, tree_id: str, prompt: _Prompt) -> None:
        self._recipe = recipe
        self._actor = actor
        self._judge = judge
        self._tree_id = tree_id
        self._prompt = prompt
        self._rendered = actor.render(prompt.prompt)
        self._judged: dict[str, asyncio.Future[_Answered]] = {}

    @property
    def prompt_tokens(self) -> int:
        return self._actor.count_tokens(self._rendered)

    def recall(self, request: Request, answered: _Answered) -> None:
        """Take note of a request that was answered in an earlier run."""
        if isinstance(request, Judge) and request.answer not in self._judged:
            known: asyncio.Future[_Answered] = asyncio.get_running_loop().create_future()
            known.set_result(answered)
            self._judged[request.answer] = known

    async def __call__(self, request: Request) -> _Answered:
        seed = identity.request_seed(self._recipe.seed, self._tree_id, request.call)
        section = self._recipe.trees
        if isinstance(request, SampleSteps):
            pieces, usage = await self._actor.steps(
                self._rendered + request.prefix, n=request.n, max_tokens=section.max_tokens, seed=seed
            )
            return _Answered([StepSample(*piece) for piece in pieces], usage)
        if isinstance(request, SampleRest):
            pieces, usage = await self._actor.answers(
                self._rendered + request.prefix, n=1, max_tokens=section.rollout_tokens, seed=seed
            )
            return _Answered(RestSample(pieces[0].text), usage)
        return await self._reward(request)

    async def _reward(self, request: Judge) -> _Answered:
        if not self._recipe.trees.judge.cache:
            return await self._rate(request)
        first = request.answer not in self._judged
        if first:
            self._judged[request.answer] = asyncio.ensure_future(self._rate(request))
        answered = await asyncio.shield(self._judged[request.answer])
        return answered if first else _Answered(answered.result, Usage(0, 0, 0))

    async def _rate(self, request: Judge) -> _Answered:
        section = self._recipe.trees
        rating = await self._judge.rate(
            self._prompt.prompt,
            self._prompt.task,
            request.answer,
            self._prompt.reference_answer,
            lambda ask: identity.request_seed(self._recipe.seed, self._tree_id, request.call, ask),
        )
        return _Answered(rating.reward(section.k1, section.k2), rating.usage)


def _search_config(section: TreesSection) -> mcts.SearchConfig:
    return mcts.SearchConfig(
        section.iterations, section.samples, section.max_depth, section.c, section.visit_all_leaves
    )


def _to_record(call: int, answered: _Answered) -> dict[str, Any]:
    kind, value = _to_json(answered.result)
    return {"call": call, "kind": kind, "value": value, "usage": list(answered.usage)}


def _to_json(result: Result) -> tuple[str, list[Any]]:
    if isinstance(result, Reward):
        return "reward", list(result)
    if isinstance(result, RestSample):
        return "rest", [result.text]
    return "steps", [list(sample) for sample in result]


def _from_record(record: dict[str, Any]) -> _Answered:
    usage, value = Usage(*record["usage"]), record["value"]
    if record["kind"] == "reward":
        return _Answered(Reward(*value), usage)
    if record["kind"] == "rest":
        return _Answered(RestSample(*value), usage)
    return _Answered([StepSample(*sample) for sample in value], usage)


def _tree_row(tree_id: str, prompt: _Prompt, tree: mcts.Tree, recipe: Recipe, actor: str) -> Row:
    return {
        "tree_id": tree_id,
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.prompt,
        "task": prompt.task,
        "actor": actor,
        "round": recipe.trees.round,
        "nodes": [_node_row(node) for node in tree.nodes],
        "iterations": recipe.trees.iterations,
        "seed": recipe.seed,
    }


def _node_row(node: mcts.Node) -> Row:
    reward = node.reward
    return {
        "node_id": node.node_id,
        "parent_id": node.parent.node_id if node.parent else -1,
        "depth": node.depth,
        "step": node.step,
        "is_terminal": node.is_terminal,
        "visits": node.visits,
        "value_sum": node.value_sum,
        "prior": None,
        "reward": reward.reward if reward else None,
        "helpfulness": reward.helpfulness if reward else None,
        "safety": reward.safety if reward else None,
        "rollouts": [{"text": text, **rated._asdict()} for text, rated in node.rollouts],
        "tokens": node.tokens,
    }


def _report(build: Build, recipe: Recipe, units: list[Unit], result: RunResult) -> Report:
    notes = ["a step cut at max_tokens is dropped (the published code keeps it)"]
    if recipe.trees.judge.cache:
        notes.append("equal answers of one tree were judged once (the paper judges each)")
    return Report(result.outcomes, usage_of(build, units), notes, counts_of(build))
