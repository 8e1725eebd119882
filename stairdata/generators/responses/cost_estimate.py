"""What answers would ask of the actor and of the process reward model, as a mean: only lengths are assumed.

A beam search is run on a made-up policy with scores at random, so the number of requests follows the real algorithm.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from stairdata.generators.responses.answering import beam_config
from stairdata.llm.budget import MILLION
from stairdata.recipe import PrmEndpoint, Recipe, ResponsesSection
from stairdata.search import answers, beam, mcts
from stairdata.search.reward import rate
from stairdata_schemas.grammar import OUTPUT_CLOSE, STEP_CLOSE, split_steps

STEPS = 4
STEP_TOKENS = 60
SIMULATED = 5
PRM = "prm"
"""Role of the process reward model, as in manifests; its calls and tokens are those of the rows' columns."""


class Load(NamedTuple):
    """Requests and tokens of one model."""

    requests: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0

    def plus(self, requests: float, prompt_tokens: float, completion_tokens: float) -> Load:
        """Add requests and their tokens."""
        return Load(
            self.requests + requests,
            self.prompt_tokens + prompt_tokens,
            self.completion_tokens + completion_tokens,
        )

    def times(self, factor: float) -> Load:
        """Scale."""
        return Load(*(factor * value for value in self))


class SearchLoad(NamedTuple):
    """What a search asks of the actor and of the process reward model."""

    writing: Load
    scoring: Load


def answering_load(section: ResponsesSection, prompt_tokens: float) -> SearchLoad:
    """Return what the answers to one prompt ask, as a mean.

    Args:
        section: how it is answered.
        prompt_tokens: length of the rendered prompt.
    """
    if section.method == "beam":
        return simulate_beam(section, prompt_tokens)
    scored = _scoring(section, prompt_tokens, STEPS).times(section.n if section.prm else 0)
    return SearchLoad(Load(1, prompt_tokens, section.n * STEPS * STEP_TOKENS), scored)


def cost_of(recipe: Recipe, role: str, name: str, load: Load) -> float | None:
    """Return what a load costs; None without a price, but for a process reward model, as in a build's budget."""
    price = recipe.prices.get(name)
    if price is None:
        return 0.0 if role == PRM else None
    return (load.prompt_tokens * price.input + load.completion_tokens * price.output) / MILLION


def prm_name(prm: PrmEndpoint | str) -> str:
    """Return what forecasts and prices call a process reward model."""
    return prm.name if isinstance(prm, PrmEndpoint) else Path(prm).name


def simulate_beam(section: ResponsesSection, prompt_tokens: float) -> SearchLoad:
    """Search on a made-up policy and made-up scores, and count what actor and PRM would be asked, as a mean.

    Args:
        section: shape of the search.
        prompt_tokens: length of the rendered prompt.
    """
    writing, scoring = Load(), Load()
    for seed in range(SIMULATED):
        rng = random.Random(seed)  # noqa: S311
        search = beam.search(beam_config(section))
        batch = next(search)
        try:
            while True:
                results: list[answers.AnswerResult] = []
                for request in batch:
                    if isinstance(request, answers.ScoreTexts):
                        steps = [(len(split_steps(each.text)), each.known) for each in request.texts]
                        results.append([[rng.random() for _ in range(known, count)] for count, known in steps])
                        for count, known in steps:
                            scoring = scoring.plus(*_scoring(section, prompt_tokens, count, known))
                        continue
                    read = prompt_tokens + STEP_TOKENS * request.prefix.count("\n")
                    result, written = _made_up_text(request, rng)
                    results.append(result)
                    writing = writing.plus(1, read, written)
                batch = search.send(results)
        except StopIteration:
            pass
    return SearchLoad(writing.times(1 / SIMULATED), scoring.times(1 / SIMULATED))


def _scoring(section: ResponsesSection, prompt_tokens: float, steps: int, known: int = 0) -> Load:
    """Count what a PRM reads for the scores of a text: one sequence in this process, on a server one a step.

    Args:
        section: says where it is.
        prompt_tokens: length of the rendered prompt.
        steps: of the text.
        known: how many of these have their scores already.
    """
    ends = range(known + 1, steps + 1) if isinstance(section.prm, PrmEndpoint) else [steps]
    return Load(len(ends), sum(prompt_tokens + STEP_TOKENS * end for end in ends), 0)


def _made_up_text(
    request: mcts.SampleSteps | answers.SampleEndings, rng: random.Random
) -> tuple[answers.AnswerResult, int]:
    if isinstance(request, mcts.SampleSteps):
        result, written = made_up_result(request, rng)
        return cast("Sequence[mcts.StepSample]", result), written
    left = _steps_left(request.prefix.count("\n"), rng)
    text = f"{rng.random()}{STEP_CLOSE * (left - 1)}{OUTPUT_CLOSE}"
    return [answers.Ending(text, is_cut=False)] * request.n, left * STEP_TOKENS * request.n


def made_up_result(request: mcts.Request, rng: random.Random) -> tuple[mcts.Result, int]:
    """Answer a request with steps that are all different; returns the tokens written, too."""
    if isinstance(request, mcts.JudgeAnswer):
        return rate(rng.choice([-1.0, 0.0, 1.0]), rng.choice([-1.0, 1.0])), 0
    depth = request.prefix.count("\n")
    if isinstance(request, mcts.SampleRest):
        return mcts.RestSample(""), _steps_left(depth, rng) * STEP_TOKENS
    steps = [_steps_left(depth, rng) for _ in range(request.n)]
    words = [f"\n{rng.random()}{STEP_CLOSE}" if left > 1 else f"{rng.random()}{OUTPUT_CLOSE}" for left in steps]
    if isinstance(request, mcts.SampleSteps):
        samples = [
            mcts.StepSample(text, STEP_TOKENS, left == 1, is_cut=False) for text, left in zip(words, steps, strict=True)
        ]
        return samples, request.n * STEP_TOKENS
    answers = [
        mcts.AnswerSample(text, STEP_TOKENS, left == 1, is_cut=False, rest="")
        for text, left in zip(words, steps, strict=True)
    ]
    return answers, sum(steps) * STEP_TOKENS


def _steps_left(depth: int, rng: random.Random) -> int:
    """Draw how many steps an answer still takes: of a length that varies by one around `STEPS`."""
    return max(1, STEPS - depth + rng.choice([-1, 0, 1]))
