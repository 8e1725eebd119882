"""SI-MCTS on any model: the caller gives two async functions, one that completes and one that judges."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from stairdata.search import mcts
from stairdata.search.reward import Reward, rate
from stairdata_schemas.errors import UsageError, quote
from stairdata_schemas.grammar import STEP_CLOSE, closes_output, split_steps

Complete = Callable[[str, int], Awaitable[Sequence[str]]]
"""From the assistant's text so far and n to n ways in which it goes on, each to the end of the answer."""
JudgeFunction = Callable[[str], Awaitable[tuple[float, float]]]
"""From a whole answer to its helpfulness and safety, each in [-1, 1]."""


async def search_tree(
    complete: Complete,
    judge: JudgeFunction,
    *,
    config: mcts.SearchConfig | None = None,
    seed: int = 42,
    k1: float = 1.0,
    k2: float = 1.0,
    count_tokens: Callable[[str], int] | None = None,
) -> mcts.Tree:
    """Grow one tree (paper section 3.2, Algorithm 1) with a policy of the caller's own.

    Expansions are fused with first rollouts: of each whole answer the first step becomes a child, and the rest is that
    child's first rollout. So `complete` is only ever asked for whole answers. Requests of a batch are awaited together.

    Args:
        complete: the policy. What it returns is the assistant's text alone, with the tags of the step grammar and
            without end-of-turn text; a text without a closing tag counts as a whole answer.
        judge: rates whole answers, from the first step to the end.
        config: iterations and shape; default: the paper's. `fused` has to stay on, and `score` has to be ucb.
        seed: breaks ties; the tree is the same each time if policy and judge depend on their arguments alone.
        k1: weight of safety times helpfulness in R = (k1 + k2) S + k1 S H.
        k2: extra weight of safety in R.
        count_tokens: measures a step for the nodes' `tokens`; without it they are None.

    Returns:
        The tree; `tree.root.children`, and of each node `step`, `text`, `visits` and `value`.

    Raises:
        UsageError: a config that needs more than whole answers, another number of answers than were asked for, or a
            rating outside [-1, 1].
    """
    shape = config or mcts.SearchConfig()
    if not shape.fused or shape.score != "ucb":
        raise UsageError("a search with a policy of your own needs fused=True and score='ucb' in its config")
    caller = _Caller(complete, judge, k1, k2, count_tokens)
    running = mcts.search(shape, random.Random(seed))  # noqa: S311
    batch = next(running)
    while True:
        results = await asyncio.gather(*map(caller.answer, batch))
        try:
            batch = running.send(list(results))
        except StopIteration as stop:
            tree: mcts.Tree = stop.value
            return tree


class _Caller:
    """Answers what a search asks for by the caller's two functions."""

    def __init__(
        self,
        complete: Complete,
        judge: JudgeFunction,
        k1: float,
        k2: float,
        count_tokens: Callable[[str], int] | None,
    ) -> None:
        self._complete = complete
        self._judge = judge
        self._k1 = k1
        self._k2 = k2
        self._count_tokens = count_tokens

    async def answer(self, request: mcts.Request) -> mcts.Result:
        if isinstance(request, mcts.JudgeAnswer):
            return await self._rate(request.answer)
        if isinstance(request, mcts.SampleRest):
            (text,) = await self._texts(request.prefix, 1)
            return mcts.RestSample(text)
        return [self._sample(text) for text in await self._texts(request.prefix, request.n)]

    async def _texts(self, prefix: str, n: int) -> list[str]:
        texts = list(await self._complete(prefix, n))
        if len(texts) != n or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"complete was asked for {n} texts and returned {quote(texts)}")
        return texts

    def _sample(self, text: str) -> mcts.AnswerSample:
        steps = split_steps(text)
        first = steps[0] if steps else ""
        is_terminal = closes_output(first) or not first.endswith(STEP_CLOSE)
        tokens = self._count_tokens(first) if self._count_tokens else None
        return mcts.AnswerSample(first, tokens, is_terminal, is_cut=False, rest=text[len(first) :])

    async def _rate(self, answer: str) -> Reward:
        rating = await self._judge(answer)
        if len(rating) != 2 or not all(-1 <= part <= 1 for part in rating):
            raise UsageError(f"judge has to return helpfulness and safety in [-1, 1], not {quote(rating)}")
        return rate(*rating, self._k1, self._k2)
