"""A process reward model in this process: forward passes in a thread, beside the event loop of the searches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from stairdata.llm.budget import Budget
from stairdata.scorers.joining import BatchJoiner
from stairdata.scorers.reading import unscored_ids
from stairdata.search.scoring import ScoreItem, StepScores

BATCH = 32
"""Answers whose passes are begun together, sorted by length; a build that is stopped waits for them."""


class FoundRewards(Protocol):
    """What `StepModel` returns, by answer."""

    @property
    def values(self) -> list[list[float]]: ...
    @property
    def sequences(self) -> list[int]: ...
    @property
    def tokens(self) -> list[int]: ...


class StepModel(Protocol):
    """A loaded reward model, as `stairdata_training.scoring.PrmScorer` is one."""

    tokenizer: Any
    context: int | None

    def step_rewards(self, answers: Sequence[Sequence[Sequence[int]]]) -> FoundRewards:
        """Score beginnings of answers by their token ids."""
        ...


class _Scored(NamedTuple):
    values: list[float]
    sequences: int
    tokens: int


class InProcessScorer:
    """Scores by a model in this process; one thread computes for all searches.

    Args:
        model: a loaded one.
        budget: once it is stopped, no pass is begun.
    """

    def __init__(self, model: StepModel, budget: Budget) -> None:
        self._model = model
        self._budget = budget
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prm")
        self._joiner = BatchJoiner(self._compute, size=BATCH, at_once=1)

    async def score(self, items: Sequence[ScoreItem]) -> StepScores:
        """Score items.

        Raises:
            RequestFailedError: an answer is longer than the model reads.
            StoppedError: the build is stopped.
            ModelError: the model can't compute, for want of memory.
        """
        answers = [unscored_ids(self._model.tokenizer, item, self._model.context) for item in items]
        scored = await self._joiner.results(answers)
        calls, tokens = sum(each.sequences for each in scored), sum(each.tokens for each in scored)
        return StepScores([each.values for each in scored], calls, tokens)

    async def close(self) -> None:
        """Wait for the pass under way, and give up the rest."""
        await self._joiner.close()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _compute(self, answers: list[list[list[int]]]) -> list[_Scored]:
        self._budget.check_running()
        loop = asyncio.get_running_loop()
        rewards = await loop.run_in_executor(self._thread, self._model.step_rewards, answers)
        return [_Scored(*each) for each in zip(rewards.values, rewards.sequences, rewards.tokens, strict=True)]
