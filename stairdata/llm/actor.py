"""The actor: a served model that continues a half-written answer, step by step or to the end."""

from __future__ import annotations

from typing import NamedTuple

from stairdata.llm.client import Client, Sample
from stairdata.recipe import Sampling
from stairdata_schemas import rendering
from stairdata_schemas.grammar import (
    CLOSING_TAGS,
    OUTPUT_CLOSE,
    OUTPUT_OPEN,
    STEP_CLOSE,
    STEP_OPEN,
    closes_output,
)


class Piece(NamedTuple):
    """A sampled step or rest of an answer."""

    text: str
    """Without end-of-turn text."""
    tokens: int
    is_terminal: bool
    """It ends the answer: by `<|/Output|>` or by the end-of-turn token."""
    is_cut: bool
    """It was cut at the token limit."""


class Usage(NamedTuple):
    """What one call used up."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


class Actor:
    """Samples steps and answers from a served model.

    Args:
        client: the server.
        tokenizer: of the served model; renders prompts with its chat template and counts tokens.
        sampling: temperature, top_p and top_k of all its samples.
        context: tokens that prompt and answer may have together; a server refuses a request that asks for more.
    """

    def __init__(self, client: Client, tokenizer: rendering.Tokenizer, sampling: Sampling, context: int = 4096) -> None:
        self.client = client
        self._context = context
        self.tokenizer = tokenizer
        self.end_of_turn = rendering.end_of_turn(tokenizer).text
        self._sampling = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }

    def render(self, prompt: str) -> str:
        """Render a prompt up to where the answer begins."""
        return rendering.render_prompt(self.tokenizer, prompt)

    def count_tokens(self, text: str) -> int:
        """Count a text's tokens."""
        return len(rendering.encode(self.tokenizer, text))

    async def steps(self, rendered: str, *, n: int, max_tokens: int, seed: int) -> tuple[list[Piece], Usage]:
        """Sample n next steps: each up to and including the next closing tag, or to the end of the turn."""
        return await self._sample(rendered, n, max_tokens, seed, [*CLOSING_TAGS, self.end_of_turn])

    async def answers(self, rendered: str, *, n: int, max_tokens: int, seed: int) -> tuple[list[Piece], Usage]:
        """Sample n times to the end of the answer."""
        return await self._sample(rendered, n, max_tokens, seed, [OUTPUT_CLOSE, self.end_of_turn])

    async def _sample(
        self, rendered: str, n: int, max_tokens: int, seed: int, stop: list[str]
    ) -> tuple[list[Piece], Usage]:
        room = min(max_tokens, self._context - self.count_tokens(rendered))
        if room < 1:
            return [Piece("", 0, is_terminal=False, is_cut=True)] * n, Usage(0, 0, 0)
        generation = await self.client.complete(rendered, n=n, max_tokens=room, seed=seed, stop=stop, **self._sampling)
        pieces = [self._piece(sample, stop) for sample in generation.samples]
        return pieces, Usage(1, generation.prompt_tokens, generation.completion_tokens)

    def _piece(self, sample: Sample, stop: list[str]) -> Piece:
        text, ended, _ = sample.text.partition(self.end_of_turn)
        if not ended and sample.finish == "stop":
            text = _restore_stop(text, stop)
        is_step = text.endswith(STEP_CLOSE) and not ended
        is_cut = sample.finish == "length" and not ended
        return Piece(text, self.count_tokens(text), not (is_step or is_cut) or closes_output(text), is_cut)


def _restore_stop(text: str, stop: list[str]) -> str:
    """Put back the closing tag that a server cut off because it does not know `include_stop_str_in_output`."""
    if text.endswith(tuple(stop)):
        return text
    opened = max((STEP_OPEN, OUTPUT_OPEN), key=text.rfind)
    closing = STEP_CLOSE if opened == STEP_OPEN else OUTPUT_CLOSE
    start = text.rfind(opened)
    if start < 0 or closing in text[start:] or closing not in stop:
        return text
    return text + closing
