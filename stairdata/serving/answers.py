"""An answer in OpenAI's form: whole, or as the events of a stream.

`content` is what a reader of the answer sees, the `<|Output|>` part of an answer in the step grammar. Its steps are in
`reasoning`, as vLLM calls it now, and in `reasoning_content`, as it did before. An answer outside the grammar, as one
that was cut is, is all content. What the model wrote is data here: it goes into JSON strings and nowhere else.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stairdata.serving.protocol import ChosenAnswer
from stairdata_schemas.errors import GrammarError
from stairdata_schemas.grammar import parse

KEEP_ALIVE = b": searching\n\n"
"""A comment of server-sent events, which clients skip."""
DONE = b"data: [DONE]\n\n"


class AnswerParts(NamedTuple):
    """What a message shows of an answer."""

    content: str
    steps: tuple[str, ...] = ()
    """Each a line `Title: ...` and its text, without tags."""

    @property
    def reasoning(self) -> str:
        return "\n\n".join(self.steps)


def parts_of(text: str) -> AnswerParts:
    """Split an answer into its steps and what a reader sees."""
    try:
        completion = parse(text)
    except GrammarError:
        return AnswerParts(text)
    return AnswerParts(completion.output, tuple(f"Title: {step.title}\n{step.body}" for step in completion.steps))


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How the answer to one request is written."""

    model: str
    hides_reasoning: bool = False
    with_usage: bool = False
    """In an event of its own."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, found: ChosenAnswer) -> dict[str, Any]:
        """Return a `chat.completion`."""
        parts = parts_of(found.text)
        message = {"role": "assistant", "content": parts.content, **self._reasoning(parts.reasoning or None)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(found)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(found)}

    def events(self, found: ChosenAnswer) -> Iterator[bytes]:
        """Write `chat.completion.chunk`s: the role, each step, each line of the content, the end, and the usage."""
        parts = parts_of(found.text)
        yield self._event({"role": "assistant", "content": ""})
        for number, step in enumerate(parts.steps):
            if not self.hides_reasoning:
                yield self._event(self._reasoning(step if number == 0 else f"\n\n{step}"))
        for piece in _lines(parts.content):
            yield self._event({"content": piece})
        yield self._event({}, _finish(found))
        if self.with_usage:
            yield event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(found)})
        yield DONE

    def _reasoning(self, text: str | None) -> dict[str, str | None]:
        return {} if self.hides_reasoning else {"reasoning": text, "reasoning_content": text}

    def _event(self, delta: Mapping[str, str | None], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.with_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(data: dict[str, Any]) -> bytes:
    """Write a server-sent event. JSON has no line breaks of its own, so nothing in a text can begin another one."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _lines(text: str) -> list[str]:
    """Cut a text behind each line feed; the pieces joined are the text."""
    pieces = [line + "\n" for line in text.split("\n")]
    pieces[-1] = pieces[-1][:-1]
    return [piece for piece in pieces if piece]


def _finish(found: ChosenAnswer) -> str:
    return "stop" if found.is_complete else "length"


def _usage(found: ChosenAnswer) -> dict[str, int]:
    return {
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "total_tokens": found.prompt_tokens + found.completion_tokens,
    }
