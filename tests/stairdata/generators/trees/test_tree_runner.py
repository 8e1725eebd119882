"""What one tree's requests leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from contextlib import closing
from pathlib import Path
from typing import Any

from stairdata.generators.trees.judges import Score
from stairdata.generators.trees.rows import Prompt
from stairdata.generators.trees.tree_journal import Reply, TreeJournal
from stairdata.generators.trees.tree_runner import RequestHandler
from stairdata.llm.actor import RequestUsage
from stairdata.recipe import Recipe
from stairdata.search.mcts import AnswerSample, JudgeAnswer, StepSample
from stairdata_schemas.errors import ServerError
from stairdata_schemas.files import Journal


class Silent:
    """An actor that is not asked."""

    def render(self, prompt: str) -> str:
        return prompt


class Dying:
    """A judge whose server dies when it is told to."""

    def __init__(self) -> None:
        self.dies = asyncio.Event()

    async def rate(self, *_: Any) -> Any:
        await self.dies.wait()
        raise ServerError("gone")


def test_a_rating_that_fails_after_its_tree_was_given_up_is_not_printed(tmp_path: Path) -> None:
    """When a server dies, one tree raises and the others are cancelled: asyncio must not print their errors."""
    complaints: list[str] = []

    async def give_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        judge, journal = Dying(), TreeJournal(tmp_path / "tree.jsonl")
        prompt = Prompt("0" * 16, "prompt", "safety", None)
        handler = RequestHandler(Recipe(), Silent(), judge, "0" * 16, prompt, journal)  # type: ignore[arg-type]
        tree = asyncio.ensure_future(handler(JudgeAnswer(0, "answer")))
        await _turns()
        tree.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tree
        judge.dies.set()
        await _turns()
        journal.close()

    asyncio.run(give_up())
    gc.collect()
    assert complaints == []


def test_a_journal_gives_back_what_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "tree.jsonl"
    journal = TreeJournal(path)
    journal.keep_rating(3, "helpfulness", Score(0.5, "words"), RequestUsage(1, 2, 3, ("timeout",)))
    journal.close()
    path.write_bytes(path.read_bytes() + b"cut by a ki")
    again = TreeJournal(path)
    assert again.rating(3, "helpfulness") == (Score(0.5, "words"), RequestUsage(1, 2, 3, ("timeout",)))
    assert again.rating(3, "safety") is None
    assert again.get(3) is None
    again.close()


def test_samples_come_back_from_the_journal_and_those_of_an_earlier_release_too(tmp_path: Path) -> None:
    path = tmp_path / "tree.jsonl"
    steps = [StepSample("a", 1, is_terminal=False, is_cut=False, prior=0.5, has_control_tokens=True)]
    answers = [AnswerSample("b", 1, is_terminal=True, is_cut=False, rest="", has_control_tokens=True)]
    journal = TreeJournal(path)
    journal.keep(0, Reply(steps, RequestUsage()))
    journal.keep(1, Reply(answers, RequestUsage()))
    journal.close()
    written = Journal(path)
    usage = list(RequestUsage())
    written.append({"call": 2, "kind": "steps", "value": [["a", 1, False, False, None]], "usage": usage})
    written.append({"call": 3, "kind": "answers", "value": [["b", 1, True, False, "", None]], "usage": usage})
    written.close()
    with closing(TreeJournal(path)) as again:
        replies = [again.get(call) for call in range(4)]
    assert [reply and reply.result for reply in replies] == [
        steps,
        answers,
        [StepSample("a", 1, is_terminal=False, is_cut=False)],
        [AnswerSample("b", 1, is_terminal=True, is_cut=False, rest="")],
    ]


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
