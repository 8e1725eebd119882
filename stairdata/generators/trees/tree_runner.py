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
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from stairdata.generators.trees.judges import Judge
from stairdata.generators.trees.rows import Prompt, tree_counts, tree_row
from stairdata.generators.trees.tree_journal import JournaledRatings, Reply, TreeJournal
from stairdata.llm.actor import Actor, Continuation, RequestUsage, step_prior
from stairdata.llm.outcomes import RequestFailedError
from stairdata.llm.wire.gathering import gather_all
from stairdata.recipe import Recipe, TreesSection
from stairdata.runs.units import UnitResult
from stairdata.search import mcts
from stairdata.search.mcts import (
    AnswerSample,
    JudgeAnswer,
    Request,
    RestSample,
    SampleAnswers,
    SampleSteps,
    StepSample,
)
from stairdata_schemas import identity
from stairdata_schemas.errors import ServerError
from stairdata_schemas.grammar import STEP_CLOSE, closes_output, split_steps
from stairdata_schemas.rendering import RenderedPrompt
from stairdata_schemas.templating.control_tokens import find_outside_grammar


class TreeRunner:
    """Grows one tree at a time for as many callers as there are."""

    def __init__(self, recipe: Recipe, actor: Actor, judge: Judge, name: str, running: Path) -> None:
        self._recipe = recipe
        self._actor = actor
        self._judge = judge
        self._name = name
        self._running = running
        self.judged = 0
        """Answers judged so far: iterations, but for those that end in a terminal node once more."""

    async def run(self, tree_id: str, prompt: Prompt) -> UnitResult:
        """Grow a tree, from its journal as far as that goes."""
        started = time.monotonic()
        with closing(TreeJournal(self._running / f"{tree_id}.jsonl")) as journal:
            handler = RequestHandler(
                self._recipe, self._actor, self._judge, tree_id, prompt, journal, on_judged=self._count
            )
            rng = random.Random(f"{self._recipe.seed}/{tree_id}")  # noqa: S311
            search = mcts.search(search_config(self._recipe.trees), rng, handler.prompt_tokens)
            try:
                tree = await drive(search, handler)
            except RequestFailedError as error:
                error.before = dict(Counter(handler.used.outcomes))
                raise
        row = tree_row(tree_id, prompt, tree, self._recipe, self._name) | {
            "requests": handler.used.requests,
            "prompt_tokens": handler.used.prompt_tokens,
            "completion_tokens": handler.used.completion_tokens,
            "seconds": round(time.monotonic() - started, 3),
        }
        used = handler.used.counts()
        return UnitResult(row, tree_counts(tree), dict(Counter(handler.used.outcomes)), journal.path, used)

    def _count(self) -> None:
        self.judged += 1


def search_config(section: TreesSection) -> mcts.SearchConfig:
    """Pass on what the search itself needs to know."""
    names = mcts.SearchConfig.__dataclass_fields__
    return mcts.SearchConfig(**{name: getattr(section, name) for name in names})


async def drive(search: mcts.Search, handler: RequestHandler) -> mcts.Tree:
    """Run a search to its end, the requests of a batch at the same time."""
    batch = next(search)
    while True:
        answers = await gather_all([handler(request) for request in batch])
        try:
            batch = search.send([reply.result for reply in answers])
        except StopIteration as stop:
            tree: mcts.Tree = stop.value
            return tree


@dataclass(frozen=True, slots=True)
class AnswerRater:
    """Has answers of one tree rated; what the judge said before a kill is in the journal."""

    recipe: Recipe
    judge: Judge
    tree_id: str
    prompt: Prompt
    journal: TreeJournal

    async def rate(self, call: int, answer: str) -> Reply:
        """Return the reward of a whole answer.

        Args:
            call: ordinal of the request in its tree, in seeds and in the journal.
            answer: from its start.

        Raises:
            JudgeFailedError, RequestFailedError: as `Judge.rate` says.
        """
        prompt, section = self.prompt, self.recipe.trees
        asks = JournaledRatings(self.recipe.seed, self.tree_id, call, self.journal)
        rating = await self.judge.rate(prompt.prompt, prompt.task, answer, prompt.reference_answer, asks)
        return Reply(rating.reward(section.k1, section.k2), rating.usage)


class RequestHandler:
    """Answers what one tree's search asks for, from the journal where it can."""

    def __init__(
        self,
        recipe: Recipe,
        actor: Actor,
        judge: Judge,
        tree_id: str,
        prompt: Prompt,
        journal: TreeJournal,
        *,
        on_judged: Callable[[], None] = lambda: None,
    ) -> None:
        self._seed = recipe.seed
        self._section = recipe.trees
        self._actor = actor
        self._tree_id = tree_id
        self._journal = journal
        self._rater = AnswerRater(recipe, judge, tree_id, prompt, journal)
        self._rendered = actor.render(prompt.prompt)
        self._on_judged = on_judged
        self._judged: dict[str, asyncio.Future[Reply]] = {}
        self.used = RequestUsage()
        """By all answered requests so far."""

    @property
    def prompt_tokens(self) -> int:
        return self._rendered.count(self._actor.count_tokens)

    async def __call__(self, request: Request) -> Reply:
        reply = self._journal.get(request.call)
        if reply is None:
            reply = await self._ask(request)
            self._journal.keep(request.call, reply)
            if isinstance(request, JudgeAnswer):
                self._on_judged()
        elif isinstance(request, JudgeAnswer) and request.answer not in self._judged:
            self._judged[request.answer] = _finished(reply)
        self.used = self.used.plus(reply.usage)
        return reply

    async def _ask(self, request: Request) -> Reply:
        if isinstance(request, JudgeAnswer):
            return await self._reward(request)
        section, text = self._section, self._rendered.plus(request.prefix)
        seed = identity.request_seed(self._seed, self._tree_id, request.call)
        with_logprobs = section.score == "pucb"
        if isinstance(request, SampleSteps):
            pieces, usage = await self._actor.steps(
                text, n=request.n, max_tokens=section.max_tokens, seed=seed, with_logprobs=with_logprobs
            )
            return Reply([self._step(text, piece) for piece in pieces], usage)
        if isinstance(request, SampleAnswers):
            limit = section.max_tokens + section.rollout_tokens
            pieces, usage = await self._actor.answers(
                text, n=request.n, max_tokens=limit, seed=seed, with_logprobs=with_logprobs
            )
            return Reply([self._split(text, piece) for piece in pieces], usage)
        pieces, usage = await self._actor.answers(text, n=1, max_tokens=section.rollout_tokens, seed=seed)
        return Reply(RestSample(pieces[0].text), usage)

    def _prior(self, piece: Continuation) -> float | None:
        if self._section.score != "pucb":
            return None
        prior = step_prior(piece.logprobs, self._section.prior)
        if prior is None and piece.text:
            raise ServerError(
                "the actor's server gives no log-probabilities, which trees.score pucb needs for its priors; "
                "use another server, or trees.score ucb"
            )
        return prior

    def _step(self, before: RenderedPrompt, piece: Continuation) -> StepSample:
        tokens = before.count_next(piece.text, self._actor.count_tokens)
        has_control_tokens = bool(find_outside_grammar(self._actor.tokenizer, piece.text))
        return StepSample(piece.text, tokens, piece.is_terminal, piece.is_cut, self._prior(piece), has_control_tokens)

    def _split(self, before: RenderedPrompt, piece: Continuation) -> AnswerSample:
        """Cut an answer behind its first step."""
        steps = split_steps(piece.text)
        first = steps[0] if steps else ""
        rest = piece.text[len(first) :]
        tokens = before.count_next(first, self._actor.count_tokens)
        is_whole = len(steps) <= 1 and not first.endswith(STEP_CLOSE)
        is_cut = tokens > self._section.max_tokens or (is_whole and piece.is_cut)
        is_terminal = closes_output(first) or (not rest and not first.endswith(STEP_CLOSE) and piece.is_terminal)
        has_control_tokens = bool(find_outside_grammar(self._actor.tokenizer, first))
        return AnswerSample(first, tokens, is_terminal, is_cut, rest, self._prior(piece), has_control_tokens)

    async def _reward(self, request: JudgeAnswer) -> Reply:
        if not self._section.judge.cache:
            return await self._rate(request)
        first = request.answer not in self._judged
        if first:
            rating = asyncio.ensure_future(self._rate(request))
            rating.add_done_callback(_retrieve_exception)  # nobody waits for it once its tree is given up
            self._judged[request.answer] = rating
        reply = await asyncio.shield(self._judged[request.answer])
        return reply if first else Reply(reply.result, RequestUsage())

    async def _rate(self, request: JudgeAnswer) -> Reply:
        return await self._rater.rate(request.call, request.answer)


def _retrieve_exception(future: asyncio.Future[Reply]) -> None:
    """Retrieve an error, so that asyncio does not print it."""
    if not future.cancelled():
        future.exception()


def _finished(reply: Reply) -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    future.set_result(reply)
    return future
