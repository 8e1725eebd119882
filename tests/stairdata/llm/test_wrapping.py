"""Thoughts before an answer and a code fence about it are no part of it; what it says itself is kept."""

from __future__ import annotations

import json

import pytest

from stairdata.generators.prompts.task_labels import read_task
from stairdata.generators.structured_cot.answer import read_row
from stairdata.generators.structured_cot.preference_judge import read_choice
from stairdata.generators.trees.judges import read_score
from stairdata.llm.client import Generation, Sample
from stairdata.llm.wrapping import unwrapped, without_thoughts
from stairdata.recipe import GateSection, Teacher

ANSWER = json.dumps({"steps": [{"title": "T:", "body": "b"}], "output": "```py\n1\n``` and </think>"})
GRAMMAR = "<|Reasoning_step|>\n<|Title|>\nT:\n<|/Title|>"


@pytest.mark.parametrize("form", [ANSWER, '[{"a": 1}]', GRAMMAR])
@pytest.mark.parametrize(
    "around",
    [
        "%s",
        "```json\n%s\n```",
        "```\n%s\n```\n",
        "```JSON %s```",
        "Here it is:\n\n```json\r\n%s\r\n```\nI hope that helps.",
        "```json\n%s",
        "<think>{} ```x``` </think>\n\n%s",
        "\n<thinking>\nwell\n</thinking>```json\n%s\n```",
        "the template opened it\n</think>\n%s",
        "<reasoning></reasoning>%s",
    ],
)
def test_what_is_around_an_answer_is_cut_off(form: str, around: str) -> None:
    is_open = around == "```json\n%s"  # then the last fence inside would count as the end
    text = form.replace("```", "") if is_open else form
    assert unwrapped(around % text) == text


@pytest.mark.parametrize("text", ["", "no form", "```\nprint(1)\n```", "a ``` b", "{ no JSON", "</b> text", "```"])
def test_other_text_is_left_alone(text: str) -> None:
    assert unwrapped(text) == text


def test_thoughts_that_do_not_end_leave_nothing() -> None:
    assert without_thoughts("<think>Rating: 5") == ""
    assert read_score("<think>Rating: 5") is None


@pytest.mark.parametrize("wrapped", ["<think>hm</think>%s", "```json\n%s\n```", "Sure!\n```\n%s\n```"])
def test_a_wrapped_answer_is_a_row(wrapped: str) -> None:
    answer = json.dumps({"steps": [{"title": "Look:", "body": "At it."}], "output": "Fine."})
    said = Generation([Sample(wrapped % answer, "stop")], 1, 1)
    row = read_row("Q?", "helpfulness", said, Teacher(format="json"), GateSection(min_characters=0))
    assert (row["output"], len(row["steps"])) == ("Fine.", 1)


def test_judges_are_not_read_in_their_thoughts() -> None:
    assert read_score("<think>Score: 2? No.</think>\n4") == 4
    assert read_score("Score: 1 maybe</think>Rating: 5") == 5
    assert read_score('```json\n{"score": 3}\n```') == 3
    assert read_choice("preference", "<think>Better: A at first</think>\nB") == "b"
    assert read_choice("compliance", "<think>Complies: yes?</think> no") == "no"
    assert read_task("<think>safety or helpfulness</think> safety") == "safety"
    assert read_task("<think>task: helpfulness</think>\n```\nsafety\n```") == "safety"


def test_long_runs_take_no_time() -> None:
    for run in ("`", "<think>", "</think>", "{", "\n", "```json\n"):
        assert isinstance(unwrapped("x" + run * 200_000), str)
