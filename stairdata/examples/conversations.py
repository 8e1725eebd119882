"""Rows of conversations, in the shapes that several trainers share."""

from __future__ import annotations

from stairdata.examples.reading import AnswerExample, PairExample
from stairdata_schemas.aliases import Row


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def turns(answer: AnswerExample) -> Row:
    """One list of messages."""
    return {"messages": [message("user", answer.prompt), message("assistant", answer.text)]}


def prompt_and_answer(answer: AnswerExample, prompt: str, text: str) -> Row:
    """Two lists of messages, in columns of these names, so that the loss is on the answer."""
    return {prompt: [message("user", answer.prompt)], text: [message("assistant", answer.text)]}


def two_sides(pair: PairExample) -> Row:
    """Three lists of messages. Both sides stand from the assistant's start: steps that they share cancel out in DPO."""
    return {
        "prompt": [message("user", pair.prompt)],
        "chosen": [message("assistant", pair.chosen)],
        "rejected": [message("assistant", pair.rejected)],
    }


def turns_and_two_messages(pair: PairExample) -> Row:
    """A list of messages, and a message for each side."""
    return {
        "messages": [message("user", pair.prompt)],
        "chosen": message("assistant", pair.chosen),
        "rejected": message("assistant", pair.rejected),
    }
