"""Growing one tree: the search asks, the actor and the judge answer, a journal remembers.

Every answered request of a running tree is journaled. A search depends on nothing but its seed and the results
it is sent, so after a kill it is replayed from the journal and goes on where it stood: a crash costs the requests
in flight and no others.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.judges import Judge as JudgeModel
from stairdata.generators.judges import Verdict
from stairdata.generators.runner import Done, Row
from stairdata.llm.actor import Actor, Continuation, RequestUsage, step_prior
from stairdata.llm.outcomes import RequestFailedError
from stairdata.recipe import Recipe, TreesSection
from stairdata.search import mcts
from stairdata.search.mcts import (
    AnswerSample,
    Judge,
    Request,
    RestSample,
    Result,
    SampleAnswers,
    SampleSteps,
    StepSample,
)
from stairdata.search.reward import Reward
from stairdata_schemas import identity
from stairdata_schemas.errors import ServerError
from stairdata_schemas.files import Journal, read_journal
from stairdata_schemas.grammar import STEP_CLOSE, closes_output, split_steps


class Prompt(NamedTuple):
    """The columns of a prompt that a tree needs."""

    prompt_id: str
    prompt: str
    task: str
    reference_answer: str | None


class Answered(NamedTuple):
    """A result and what it used up."""

    result: Result
    usage: RequestUsage


class Memory:
    """The journal of one running tree: answered requests, and single ratings of a judgement not yet whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answered: dict[int, Answered] = {}
        self._ratings: dict[tuple[int, str], tuple[Verdict, RequestUsage]] = {}
        for record in read_journal(path):
            self._remember(record)
        self._journal = Journal(path)

    def get(self, call: int) -> Answered | None:
        """Return the answer to a request, if it was answered in an earlier run."""
        return self._answered.get(call)

    def keep(self, call: int, answered: Answered) -> None:
        """Write an answer down."""
        kind, value = _to_json(answered.result)
        self._journal.append({"call": call, "kind": kind, "value": value, "usage": list(answered.usage)})

    def rating(self, call: int, aspect: str) -> tuple[Verdict, RequestUsage] | None:
        """Return one rating of a judgement, if it was given in an earlier run."""
        return self._ratings.get((call, aspect))

    def keep_rating(self, call: int, aspect: str, verdict: Verdict, usage: RequestUsage) -> None:
        """Write one rating down."""
        self._journal.append({"call": call, "kind": "rating", "value": [aspect, *verdict], "usage": list(usage)})

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _remember(self, record: dict[str, Any]) -> None:
        requests, read, written, outcomes = record["usage"]
        usage, value = RequestUsage(requests, read, written, tuple(outcomes)), record["value"]
        if record["kind"] == "rating":
            self._ratings[record["call"], value[0]] = (Verdict(*value[1:]), usage)
        else:
            self._answered[record["call"]] = Answered(_from_json(record["kind"], value), usage)


def _to_json(result: Result) -> tuple[str, list[Any]]:
    if isinstance(result, Reward):
        return "reward", list(result)
    if isinstance(result, RestSample):
        return "rest", list(result)
    kind = "answers" if result and isinstance(result[0], AnswerSample) else "steps"
    return kind, [list(sample) for sample in result]


def _from_json(kind: str, value: list[Any]) -> Result:
    if kind == "reward":
        helpfulness, safety, reward, said = value
        return Reward(helpfulness, safety, reward, tuple((aspect, words) for aspect, words in said))
    if kind == "rest":
        return RestSample(*value)
    if kind == "answers":
        return [AnswerSample(*sample) for sample in value]
    return [StepSample(*sample) for sample in value]


class Grower:
    """Grows one tree at a time for as many callers as there are."""

    def __init__(self, recipe: Recipe, actor: Actor, judge: JudgeModel, name: str, running: Path) -> None:
        self._recipe = recipe
        self._actor = actor
        self._judge = judge
        self._name = name
        self._running = running
        self.judged = 0
        """Answers judged so far: iterations, but for those that end in a terminal node once more."""

    async def grow(self, tree_id: str, prompt: Prompt) -> Done:
        """Grow a tree, from its journal as far as that goes."""
        started = time.monotonic()
        with closing(Memory(self._running / f"{tree_id}.jsonl")) as memory:
            fetch = Fetch(self._recipe, self._actor, self._judge, tree_id, prompt, memory, on_judged=self._count)
            rng = random.Random(f"{self._recipe.seed}/{tree_id}")  # noqa: S311
            search = mcts.search(search_config(self._recipe.trees), rng, fetch.prompt_tokens)
            try:
                tree = await drive(search, fetch)
            except RequestFailedError as error:
                error.before = dict(Counter(fetch.used.outcomes))
                raise
        row = _tree_row(tree_id, prompt, tree, self._recipe, self._name) | {
            "requests": fetch.used.requests,
            "prompt_tokens": fetch.used.prompt_tokens,
            "completion_tokens": fetch.used.completion_tokens,
            "seconds": round(time.monotonic() - started, 3),
        }
        return Done(row, _counts(tree), dict(Counter(fetch.used.outcomes)), memory.path)

    def _count(self) -> None:
        self.judged += 1


def search_config(section: TreesSection) -> mcts.SearchConfig:
    """Pass on what the search itself needs to know."""
    names = mcts.SearchConfig.__dataclass_fields__
    return mcts.SearchConfig(**{name: getattr(section, name) for name in names})


async def drive(search: mcts.Search, fetch: Fetch) -> mcts.Tree:
    """Run a search to its end, the requests of a batch at the same time."""
    batch = next(search)
    while True:
        answers = await _gather([fetch(request) for request in batch])
        try:
            batch = search.send([answered.result for answered in answers])
        except StopIteration as stop:
            tree: mcts.Tree = stop.value
            return tree


async def _gather(waiting: list[Awaitable[Answered]]) -> list[Answered]:
    if len(waiting) == 1:
        return [await waiting[0]]
    answers = await asyncio.gather(*waiting, return_exceptions=True)  # the others' answers are journaled too
    for answered in answers:
        if isinstance(answered, BaseException):
            raise answered
    return [answered for answered in answers if not isinstance(answered, BaseException)]


class Fetch:
    """Answers what one tree's search asks for, from memory if it can."""

    def __init__(
        self,
        recipe: Recipe,
        actor: Actor,
        judge: JudgeModel,
        tree_id: str,
        prompt: Prompt,
        memory: Memory,
        *,
        on_judged: Callable[[], None] = lambda: None,
    ) -> None:
        self._seed = recipe.seed
        self._section = recipe.trees
        self._actor = actor
        self._judge = judge
        self._tree_id = tree_id
        self._prompt = prompt
        self._memory = memory
        self._rendered = actor.render(prompt.prompt)
        self._on_judged = on_judged
        self._judged: dict[str, asyncio.Future[Answered]] = {}
        self.used = RequestUsage()
        """By all answered requests so far."""

    @property
    def prompt_tokens(self) -> int:
        return self._actor.count_tokens(self._rendered)

    async def __call__(self, request: Request) -> Answered:
        answered = self._memory.get(request.call)
        if answered is None:
            answered = await self._ask(request)
            self._memory.keep(request.call, answered)
            if isinstance(request, Judge):
                self._on_judged()
        elif isinstance(request, Judge) and request.answer not in self._judged:
            self._judged[request.answer] = _done(answered)
        self.used = self.used.plus(answered.usage)
        return answered

    async def _ask(self, request: Request) -> Answered:
        if isinstance(request, Judge):
            return await self._reward(request)
        section, text = self._section, self._rendered + request.prefix
        seed = identity.request_seed(self._seed, self._tree_id, request.call)
        with_logprobs = section.score == "pucb"
        if isinstance(request, SampleSteps):
            pieces, usage = await self._actor.steps(
                text, n=request.n, max_tokens=section.max_tokens, seed=seed, with_logprobs=with_logprobs
            )
            return Answered([self._step(piece) for piece in pieces], usage)
        if isinstance(request, SampleAnswers):
            limit = section.max_tokens + section.rollout_tokens
            pieces, usage = await self._actor.answers(
                text, n=request.n, max_tokens=limit, seed=seed, with_logprobs=with_logprobs
            )
            return Answered([self._split(piece) for piece in pieces], usage)
        pieces, usage = await self._actor.answers(text, n=1, max_tokens=section.rollout_tokens, seed=seed)
        return Answered(RestSample(pieces[0].text), usage)

    def _prior(self, piece: Continuation) -> float | None:
        if self._section.score != "pucb":
            return None
        prior = step_prior(piece.logprobs, self._section.prior)
        if prior is None and piece.text:
            raise ServerError(
                "the actor's server gives no log-probabilities, which trees.score pucb needs for its priors; "
                "take another server, or trees.score ucb"
            )
        return prior

    def _step(self, piece: Continuation) -> StepSample:
        tokens = self._actor.count_tokens(piece.text)
        return StepSample(piece.text, tokens, piece.is_terminal, piece.is_cut, self._prior(piece))

    def _split(self, piece: Continuation) -> AnswerSample:
        """Cut an answer behind its first step."""
        steps = split_steps(piece.text)
        first = steps[0] if steps else ""
        rest = piece.text[len(first) :]
        tokens = self._actor.count_tokens(first)
        is_whole = len(steps) <= 1 and not first.endswith(STEP_CLOSE)
        is_cut = tokens > self._section.max_tokens or (is_whole and piece.is_cut)
        is_terminal = closes_output(first) or (not rest and not first.endswith(STEP_CLOSE) and piece.is_terminal)
        return AnswerSample(first, tokens, is_terminal, is_cut, rest, self._prior(piece))

    async def _reward(self, request: Judge) -> Answered:
        if not self._section.judge.cache:
            return await self._rate(request)
        first = request.answer not in self._judged
        if first:
            rating = asyncio.ensure_future(self._rate(request))
            rating.add_done_callback(_look)  # nobody waits for it once its tree is given up
            self._judged[request.answer] = rating
        answered = await asyncio.shield(self._judged[request.answer])
        return answered if first else Answered(answered.result, RequestUsage())

    async def _rate(self, request: Judge) -> Answered:
        call = request.call
        rating = await self._judge.rate(
            self._prompt.prompt,
            self._prompt.task,
            request.answer,
            self._prompt.reference_answer,
            Asks(self._seed, self._tree_id, call, self._memory),
        )
        return Answered(rating.reward(self._section.k1, self._section.k2), rating.usage)


class Asks:
    """What a judge needs of the tree it rates for: seeds, and the ratings it gave before a kill."""

    def __init__(self, seed: int, tree_id: str, call: int, memory: Memory) -> None:
        self._seed = seed
        self._tree_id = tree_id
        self._call = call
        self._memory = memory

    def seed(self, ask: int) -> int:
        """Return the seed of the ask-th time a rating is asked for."""
        return identity.request_seed(self._seed, self._tree_id, self._call, ask)

    def known(self, aspect: str) -> tuple[Verdict, RequestUsage] | None:
        """Return a rating given before."""
        return self._memory.rating(self._call, aspect)

    def keep(self, aspect: str, verdict: Verdict, usage: RequestUsage) -> None:
        """Write a rating down."""
        self._memory.keep_rating(self._call, aspect, verdict, usage)


def _look(future: asyncio.Future[Answered]) -> None:
    """Take note of an error, so that asyncio does not print it."""
    if not future.cancelled():
        future.exception()


def _done(answered: Answered) -> asyncio.Future[Answered]:
    future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
    future.set_result(answered)
    return future


def _counts(tree: mcts.Tree) -> dict[str, int]:
    return {
        "nodes": len(tree.nodes),
        "evaluations": tree.evaluations,
        "duplicate_steps": tree.duplicates,
        "cut_steps": tree.cut_steps,
    }


def _tree_row(tree_id: str, prompt: Prompt, tree: mcts.Tree, recipe: Recipe, actor: str) -> Row:
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
        "judgements": _judgement_rows(tree) if recipe.trees.judge.keep_text else None,
    }


def _judgement_rows(tree: mcts.Tree) -> list[Row]:
    return [
        {"node_id": node.node_id, "rollout": rollout, "aspect": aspect, "text": text}
        for node in tree.nodes
        for rollout, rated in [(None, node.reward), *((index, pair[1]) for index, pair in enumerate(node.rollouts))]
        if rated is not None
        for aspect, text in rated.said
    ]


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
        "prior": node.prior,
        "reward": reward.reward if reward else None,
        "helpfulness": reward.helpfulness if reward else None,
        "safety": reward.safety if reward else None,
        "rollouts": [
            {"text": text, "helpfulness": rated.helpfulness, "safety": rated.safety, "reward": rated.reward}
            for text, rated in node.rollouts
        ],
        "tokens": node.tokens,
    }
