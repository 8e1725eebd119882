"""Judges: who says how helpful and how safe an answer is (design section 5)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

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


class Asks(Protocol):
    """What a judge needs of whoever it rates for."""

    def seed(self, ask: int) -> int: ...
    def known(self, aspect: str) -> tuple[float, Usage] | None: ...
    def keep(self, aspect: str, score: float, usage: Usage) -> None: ...


_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_MARKS = r"[*_`\"'(\[\])]*"
_WORD = "(one|two|three|four|five)"
_SCALE = r"(?:\(1\s*(?:-|\u2013|to)\s*5\))?"
# "4", "4/5", "**4**", "(4)", "4 out of 5"; not "45", "4.5", "4/10", "4 out of 10", "2-3"
_OF_FIVE = r"(?:\s*/\s*5|\s+out\s+of\s+(?:5|five))?"
_NUMBER = rf"{_MARKS}([1-5]){_MARKS}{_OF_FIVE}{_MARKS}(?!\d|\.\d|\s*/|\s+out\s+of\b|\s*[-\u2013]\s*\d)"
_LABEL = rf"\b(?:score|rating)\b{_MARKS}\s*{_SCALE}{_MARKS}\s*(?:[:=]|is)?{_MARKS}\s*"
_READINGS = [
    re.compile(_LABEL + _NUMBER, re.IGNORECASE),
    re.compile(_LABEL + rf"{_MARKS}{_WORD}\b", re.IGNORECASE),
    re.compile(rf"^\W*{_NUMBER}\W*$", re.MULTILINE),
    re.compile(rf"^\W*{_WORD}(?:\s+out\s+of\s+five)?\W*$", re.IGNORECASE | re.MULTILINE),
]


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

    What stands behind "Score" or "Rating" counts before a number alone on a line; of several the last counts,
    since the reasoning comes first.
    """
    for reading in _READINGS:
        found = reading.findall(text)
        if found:
            return int(_WORDS.get(found[-1].lower(), found[-1]))
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

    async def rate(self, prompt: str, task: str, answer: str, reference: str | None, asks: Asks) -> Rating:
        """Rate a whole answer.

        Raises:
            RequestFailedError: the judge failed, or said nothing readable in all its asks.
        """
        if self._section.kind == "reference":
            return Rating(*reference_rating(answer, task, reference), Usage(0, 0, 0))
        if self._section.kind == "rule":
            if task == "safety":
                return Rating(-1.0, rule_safety(answer, task), Usage(0, 0, 0))
            helpfulness, usage = await self._ask("helpfulness", prompt, answer, asks)
            return Rating(helpfulness, 1.0, usage)
        helpfulness, first = await self._ask("helpfulness", prompt, answer, asks)
        safety, second = await self._ask("safety", prompt, answer, asks)
        return Rating(helpfulness, safety, _add(first, second))

    async def _ask(self, aspect: str, prompt: str, answer: str, asks: Asks) -> tuple[float, Usage]:
        known = asks.known(aspect)
        if known is not None:
            return known
        assert self._client is not None
        question = _template(aspect).render(prompt=prompt, answer=final_answer(answer))
        usage, said = Usage(0, 0, 0), ""
        for ask in range(self._section.reasks + 1):
            generation = await self._client.chat(
                [{"role": "user", "content": question}],
                max_tokens=self._section.max_tokens,
                seed=asks.seed(ask),
                temperature=self._section.temperature,
                top_p=self._section.top_p,
            )
            usage = _add(usage, Usage(1, generation.prompt_tokens, generation.completion_tokens))
            said = generation.samples[0].text
            score = read_score(said)
            if score is not None:
                asks.keep(aspect, (score - 3) / 2, usage)
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
