"""Judges: who says how helpful and how safe an answer is (design section 5)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jinja2

from stairdata.llm.actor import Usage
from stairdata.llm.client import Client
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.llm.session import OnProgress, open_client
from stairdata.recipe import JudgeSection, TreesSection
from stairdata.search.reward import Reward, rate, reference_rating, rule_safety
from stairdata_schemas.errors import quote
from stairdata_schemas.grammar import final_answer

TEMPLATE_VERSION = 1
SeedOf = Callable[[int], int]
"""From the number of an ask to its seed."""

_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
# the number may be bold, bracketed, or out of five; "4.5", "45" and "10" are no ratings
_NUMBER = r"[*_`\"'(\[]*([1-5])[*_`\"')\]]*(?:\s*/\s*5|\s+out\s+of\s+(?:5|five))?(?![\d/]|\.\d)"
_LABELLED = re.compile(rf"\b(?:score|rating)\b[*_`\"']*\s*(?:[:=]|is)?\s*{_NUMBER}", re.IGNORECASE)
_ALONE = re.compile(rf"^\W*{_NUMBER}\W*$", re.MULTILINE)
_LABELLED_WORD = re.compile(r"\b(?:score|rating)\b\W*(?:is\W+)?(one|two|three|four|five)\b", re.IGNORECASE)
_WORD_ALONE = re.compile(r"^\W*(one|two|three|four|five)(?:\s+out\s+of\s+five)?\W*$", re.IGNORECASE | re.MULTILINE)


class Rating(NamedTuple):
    """What a judge said, and what it cost."""

    helpfulness: float
    safety: float
    usage: Usage

    def reward(self, k1: float, k2: float) -> Reward:
        """Combine both scores into the search's reward."""
        return rate(self.helpfulness, self.safety, k1, k2)


def read_score(text: str) -> int | None:
    """Read a rating from 1 to 5 out of a judge's words; None where none can be read.

    A number behind "Score" or "Rating" counts before a number alone on a line; of several the last counts,
    since the reasoning comes first.
    """
    for pattern in (_LABELLED, _ALONE):
        found = pattern.findall(text)
        if found:
            return int(found[-1])
    for pattern in (_LABELLED_WORD, _WORD_ALONE):
        words = pattern.findall(text)
        if words:
            return _WORDS[words[-1].lower()]
    return None


class Judge:
    """Rates answers as its section of the recipe says.

    Args:
        section: kind and sampling.
        client: the model that rates; None for kind `reference`.
    """

    def __init__(self, section: JudgeSection, client: Client | None) -> None:
        self._section = section
        self._client = client

    async def rate(self, prompt: str, task: str, answer: str, reference: str | None, seed_of: SeedOf) -> Rating:
        """Rate a whole answer.

        Raises:
            RequestFailedError: the judge failed, or said nothing readable in all its asks.
        """
        if self._section.kind == "reference":
            return Rating(*reference_rating(answer, task, reference), Usage(0, 0, 0))
        if self._section.kind == "rule":
            if task == "safety":
                return Rating(-1.0, rule_safety(answer, task), Usage(0, 0, 0))
            helpfulness, usage = await self._ask("helpfulness", prompt, answer, seed_of)
            return Rating(helpfulness, 1.0, usage)
        helpfulness, first = await self._ask("helpfulness", prompt, answer, seed_of)
        safety, second = await self._ask("safety", prompt, answer, seed_of)
        return Rating(helpfulness, safety, _add(first, second))

    async def _ask(self, aspect: str, prompt: str, answer: str, seed_of: SeedOf) -> tuple[float, Usage]:
        assert self._client is not None
        question = _template(aspect).render(prompt=prompt, answer=final_answer(answer))
        usage, said = Usage(0, 0, 0), ""
        for ask in range(self._section.reasks + 1):
            generation = await self._client.chat(
                [{"role": "user", "content": question}],
                max_tokens=self._section.max_tokens,
                seed=seed_of(ask),
                temperature=self._section.temperature,
                top_p=self._section.top_p,
            )
            usage = _add(usage, Usage(1, generation.prompt_tokens, generation.completion_tokens))
            said = generation.samples[0].text
            score = read_score(said)
            if score is not None:
                return (score - 3) / 2, usage
        raise RequestFailedError([Outcome.MALFORMED], f"the judge's {aspect} can't be read in {quote(said)}")


@asynccontextmanager
async def open_judge(
    section: TreesSection, actor: Client, log: Path, on_progress: OnProgress | None = None
) -> AsyncIterator[Judge]:
    """Make the recipe's judge; kind `endpoint` gets a connection of its own."""
    if section.judge.endpoint is None:
        yield Judge(section.judge, actor)
        return
    async with open_client(section.judge.endpoint, log, on_progress) as client:
        yield Judge(section.judge, client)


def _add(first: Usage, second: Usage) -> Usage:
    return Usage(*(one + other for one, other in zip(first, second, strict=True)))


@cache
def _template(aspect: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata.generators"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model; values are never parsed as templates
    )
    return environment.get_template(f"judge_{aspect}_v{TEMPLATE_VERSION}.jinja")
