"""A judge over teachers: which of several candidates is best, and whether an answer complies with harm."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from stairdata.generators.structured_cot.requests import TeacherPrompt
from stairdata.llm.client import Generation
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import unreadable
from stairdata.llm.wrapping import without_thoughts
from stairdata.recipe import CotJudge
from stairdata.runs.answer_journal import AnswerJournal
from stairdata.runs.templates import find_template
from stairdata_schemas import identity
from stairdata_schemas.errors import quote

TEMPLATE_VERSION = 1
FIRST_CALL = 1  # a prompt's call 0 is its teacher's
_MARKS = r"[*_`\"'(\[\]).]*+"  # possessive: what is given back would be tried in every part
_READINGS = {
    "preference": re.compile(
        rf"\bbetter\b{_MARKS}\s*+(?::|is)?\s*+{_MARKS}\s*+(?:answer\s+)?(A|B|tie)\b", re.IGNORECASE
    ),
    "compliance": re.compile(rf"\bcomplies\b{_MARKS}\s*+:?\s*+{_MARKS}\s*+(yes|no)\b", re.IGNORECASE),
}
_ALONE = {
    "preference": re.compile(r"^[^\w\n]*+(A|B|tie)[^\w\n]*$", re.IGNORECASE | re.MULTILINE),
    "compliance": re.compile(r"^[^\w\n]*+(yes|no)[^\w\n]*$", re.IGNORECASE | re.MULTILINE),
}


def read_choice(question: str, text: str) -> str | None:
    """Read a judge's choice in lower case; None where none can be read.

    Of several the last counts. Thoughts before the answer are not read.

    Args:
        question: preference (a, b, tie) or compliance (yes, no).
        text: the judge's words.
    """
    answer = without_thoughts(text)
    for reading in (_READINGS[question], _ALONE[question]):
        found = reading.findall(answer)
        if found:
            return str(found[-1]).lower()
    return None


class PreferenceJudge:
    """Asks the recipe's judge.

    Args:
        section: sampling and how often to ask again.
        pool: the judge's servers.
        seed: the recipe's.
        answers: keeps what was answered until the prompt's row is written.
    """

    def __init__(self, section: CotJudge, pool: EndpointPool, seed: int, answers: AnswerJournal) -> None:
        self._section = section
        self._pool = pool
        self._seed = seed
        self._answers = answers

    async def complies(self, prompt: TeacherPrompt, answer: str) -> bool:
        """Return whether an answer, its reasoning included, helps with harm.

        Raises:
            JudgeFailedError: the judge said nothing readable in all its asks.
            RequestFailedError: a request to the judge failed.
        """
        return await self._choose("compliance", prompt, prompt=prompt.prompt, answer=answer) == "yes"

    async def scores(self, prompt: TeacherPrompt, completions: Sequence[str]) -> list[float]:
        """Compare each two candidates in both orders; a score is the share of comparisons won, a tie counts as half.

        Raises:
            JudgeFailedError: the judge said nothing readable in all its asks.
            RequestFailedError: a request to the judge failed.
        """
        won = [0.0] * len(completions)
        for first, second in itertools.permutations(range(len(completions)), 2):
            choice = await self._choose(
                "preference",
                prompt,
                prompt=prompt.prompt,
                task=prompt.task,
                first=completions[first],
                second=completions[second],
            )
            won[first] += {"a": 1.0, "tie": 0.5}.get(choice, 0.0)
            won[second] += {"b": 1.0, "tie": 0.5}.get(choice, 0.0)
        return [score / (2 * (len(completions) - 1)) for score in won]

    async def _choose(self, question: str, prompt: TeacherPrompt, /, **values: str) -> str:
        content = find_template(__package__, f"judge_{question}_v{TEMPLATE_VERSION}").render(values)
        said, ended = "", list[str]()
        for ask in range(self._section.reasks + 1):
            generation = await self._ask(prompt, content, ask)
            ended += generation.outcomes
            said = generation.samples[0].text
            choice = read_choice(question, said)
            if choice is not None:
                return choice
        asked = [self._name(prompt, content, ask) for ask in range(self._section.reasks + 1)]
        self._answers.drop(prompt.prompt_id, asked)  # the next run asks the judge again, and the teachers not
        raise unreadable(f"the judge's {question} can't be read in {quote(said)}", len(asked), ended)

    async def _ask(self, prompt: TeacherPrompt, content: str, ask: int) -> Generation:
        section = self._section
        options: dict[str, Any] = {} if section.temperature is None else {"temperature": section.temperature}
        seed = self._seed_of(prompt, content, ask)

        async def send() -> Generation:
            messages: Any = [{"role": "user", "content": content}]
            return await self._pool.chat(messages, max_tokens=section.max_tokens, seed=seed, **options)

        return await self._answers.once(prompt.prompt_id, self._name(prompt, content, ask), send)

    def _seed_of(self, prompt: TeacherPrompt, content: str, ask: int) -> int:
        return identity.request_seed(self._seed, f"{prompt.prompt_id}/{content}", FIRST_CALL, ask)

    def _name(self, prompt: TeacherPrompt, content: str, ask: int) -> str:
        return f"judge/{self._seed_of(prompt, content, ask)}"
