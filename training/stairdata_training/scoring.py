"""Scores of whole and partial answers by a process reward model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stairdata_schemas.errors import ModelError, quote
from stairdata_schemas.rendering import check_model_folder, load_tokenizer, step_ids
from stairdata_training.inference.batches import batches_by_length
from stairdata_training.inference.forward import pad, rewards_at
from stairdata_training.memory import is_out_of_memory
from stairdata_training.models import load_reward_model, scoring_dtype
from stairdata_training.running import quiet
from stairdata_training.tokens import prm_ids, require_tags

Beginnings = Sequence[Sequence[int]]
"""Token ids up to the end of each step of one answer that is to be scored, the shortest first."""


class StepRewards(NamedTuple):
    """Rewards of the beginnings of answers."""

    values: list[list[float]]
    """For each answer, by its steps."""
    sequences: list[int]
    """That were read for each answer: one where each beginning is that of the next, otherwise one a step."""
    tokens: list[int]
    """Of those, without padding."""


class _Reading(NamedTuple):
    """One sequence to be read, and what is scored on the way."""

    ids: Sequence[int]
    ends: list[int]
    """Positions of the last tokens of beginnings."""
    places: list[tuple[int, int]]
    """Of these scores: number of the answer, number of its step."""


class PrmScorer:
    """A loaded reward model, which gives r(x, z) for prompt x and (partial) answer z, higher is better.

    Weights are computed in 32 bits on a CPU, so that an answer has the same score alone and in a batch; on a
    GPU in bf16, which agrees to about two digits.

    Attributes:
        tokenizer: the model's, by which texts become ids.
        context: the most tokens that it reads; None where it does not say.
    """

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self._network = network
        self.tokenizer = tokenizer
        self.context: int | None = getattr(network.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def load(cls, path: str | Path) -> PrmScorer:
        """Load a reward model from a folder or the Hub.

        Raises:
            ModelError: there is none, it has several labels, its tokenizer does not know the grammar's tags, or there
                is too little memory.
        """
        import torch

        if Path(path).exists():
            check_model_folder(Path(path))
        with quiet(), _enough_memory():
            tokenizer = load_tokenizer(path)
            require_tags(tokenizer, path)
            network = load_reward_model(path)
        if len(tokenizer) > network.get_input_embeddings().weight.shape[0]:
            raise ModelError(
                f"the tokenizer of {str(path)!r} has {len(tokenizer)} tokens, and the model knows "
                f"{network.get_input_embeddings().weight.shape[0]}: it is another model's; put the tokenizer that the "
                "model was trained with into its folder"
            )
        if torch.cuda.is_available():
            with _enough_memory():
                network = network.to("cuda", getattr(torch, scoring_dtype()))
        return cls(network.eval(), tokenizer)

    def score(self, items: Sequence[tuple[str, str, bool]], batch_size: int = 8) -> list[float]:
        """Score items of prompt, assistant text and whether the text is complete.

        A complete text is read with its end-of-turn token, a partial one without, as in training.
        """
        answers = [[prm_ids(self.tokenizer, prompt, text, is_complete=whole)] for prompt, text, whole in items]
        return [value for (value,) in self.step_rewards(answers, batch_size).values]

    def score_steps(self, items: Sequence[tuple[str, str, bool]], batch_size: int = 8) -> StepRewards:
        """Score each step of such items: what is there up to its end, the last step as `score` does."""
        answers = [step_ids(self.tokenizer, prompt, text, is_complete=whole) for prompt, text, whole in items]
        return self.step_rewards(answers, batch_size)

    def step_rewards(self, answers: Sequence[Beginnings], batch_size: int = 8) -> StepRewards:
        """Score beginnings of answers, all of one answer in one forward pass.

        What a causal model says at a token does not depend on those behind it, so the reward head reads the longest
        beginning at the ends of all. With a tokenizer whose ids change when a text goes on, one beginning is not that
        of another, and each is read by itself.

        Args:
            answers: token ids, none of them empty.
            batch_size: sequences in one forward pass.

        Raises:
            ModelError: there is too little memory.
        """
        values = [[0.0] * len(beginnings) for beginnings in answers]
        by_answer = [_readings(number, beginnings) for number, beginnings in enumerate(answers)]
        readings = [reading for each in by_answer for reading in each]
        scores = rewards_at(self._network)
        for batch in batches_by_length([len(reading.ids) for reading in readings], batch_size):
            chosen = [readings[index] for index in batch]
            padded = pad([reading.ids for reading in chosen], self.tokenizer.pad_token_id or 0)
            with _enough_memory():
                found = scores(padded, [reading.ends for reading in chosen])
            for reading, row in zip(chosen, found, strict=True):
                for (answer, step), value in zip(reading.places, row, strict=True):
                    values[answer][step] = value
        tokens = [sum(len(reading.ids) for reading in each) for each in by_answer]
        return StepRewards(values, [len(each) for each in by_answer], tokens)


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Say what to do where there is too little memory.

    Raises:
        ModelError: there is.
    """
    try:
        yield
    except Exception as error:
        if not (is_out_of_memory(error) or is_out_of_memory(error.__cause__)):
            raise
        raise ModelError(
            f"there is too little memory for the reward model in this process: {quote(' '.join(str(error).split()))}; "
            "on a GPU serve the actor with a smaller share (actor.gpu_memory), or the reward model with one of its own "
            "(responses.prm: {path: FOLDER, serve: true, gpu_memory: 0.3}); elsewhere lower responses.max_tokens, or "
            "give the reward model a server on another machine (responses.prm.base_url); finished work is kept"
        ) from error


def _readings(number: int, beginnings: Beginnings) -> list[_Reading]:
    """Return what has to be read to score an answer: its longest beginning, and those that are not part of that."""
    ends = [len(ids) - 1 for ids in beginnings]
    places = [(number, step) for step in range(len(beginnings))]
    whole = beginnings[-1]
    if all(ids == whole[: len(ids)] for ids in beginnings):
        return [_Reading(whole, ends, places)]
    return [_Reading(ids, [end], [place]) for ids, end, place in zip(beginnings, ends, places, strict=True)]
