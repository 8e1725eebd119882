"""From the body of a chat request to a question: what is honoured, what is refused by name, and how large all may be.

Whatever the body holds, reading it ends in a `ChatRequest` or in a `RefusedRequestError`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stairdata.serving.limits import ServingLimits
from stairdata.serving.protocol import ChatQuestion
from stairdata.serving.refusals import RefusedRequestError
from stairdata_schemas.errors import quote
from stairdata_schemas.identity import SEED_BITS
from stairdata_schemas.rendering import Conversation, Turn
from stairdata_schemas.text.visible import is_blank

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
    "stop": ([], ""),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
}
"""What this server has not, and the values with which it is not asked for; null is one everywhere."""
IGNORED = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Whose request it is; no answer depends on it."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IGNORED_IN_MESSAGES = {"name", "reasoning", "reasoning_content", "annotations"}
"""Of a message; the steps of earlier answers are no part of a conversation."""
_MORE_SEED_BITS = 63


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against those who watch the traffic; this one stays on the machine."""


class ChatBody(BaseModel):
    """The part of a request that is honoured."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: list[Any]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**_MORE_SEED_BITS), lt=2**_MORE_SEED_BITS)] = None


class ChatRequest(NamedTuple):
    """A question, and how its answer is sent."""

    model: str
    question: ChatQuestion
    is_stream: bool
    with_usage: bool
    """At the end of the stream."""


def read_request(body: bytes, limits: ServingLimits) -> ChatRequest:
    """Read the body of a chat request.

    Raises:
        RefusedRequestError: it is none, or asks for what this server can't do.
    """
    sections = _parse(body)
    _check_names(sections)
    honoured = {name: value for name, value in sections.items() if name in ChatBody.model_fields}
    try:
        chat = ChatBody.model_validate(honoured)
    except ValidationError as error:
        raise _refused(error) from None
    if chat.stream_options is not None and not chat.stream:
        raise RefusedRequestError("stream_options is for requests with stream: true", param="stream_options")
    conversation = _conversation(chat.messages, limits)
    question = ChatQuestion(
        conversation,
        secrets.randbits(SEED_BITS) if chat.seed is None else chat.seed,
        chat.max_completion_tokens or chat.max_tokens,
        chat.temperature,
        chat.top_p,
    )
    with_usage = bool(chat.stream_options and chat.stream_options.include_usage)
    return ChatRequest(chat.model, question, bool(chat.stream), with_usage)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RefusedRequestError(f"the body is not JSON: {quote(reason)}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise RefusedRequestError("the body is not a JSON object", code="invalid_json")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _check_names(sections: Mapping[str, Any]) -> None:
    for name, value in sections.items():
        if name in ChatBody.model_fields or name in IGNORED:
            continue
        if name not in NEUTRAL:
            raise RefusedRequestError(f"{quote(name)} is no argument of this server", param=name[:80])
        if not _is_neutral(value, NEUTRAL[name]):
            raise RefusedRequestError(
                f"{name} is not supported here: a search gives one answer as plain text; leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or any(type(value) is type(each) and value == each for each in neutral)


def _refused(error: ValidationError) -> RefusedRequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    given = "" if first["type"] == "missing" else f", not {quote(first['input'])}"
    return RefusedRequestError(f"{quote(place)[1:-1]}: {first['msg']}{given}", param=place[:80])


def _conversation(messages: list[Any], limits: ServingLimits) -> Conversation:
    if not 1 <= len(messages) <= limits.messages:
        raise RefusedRequestError(
            f"messages: {len(messages)} of them; a conversation has 1 to {limits.messages}", param="messages"
        )
    turns = tuple(_turn(message, f"messages[{place}]") for place, message in enumerate(messages))
    length = sum(len(turn.content) for turn in turns)
    if length > limits.characters:
        raise RefusedRequestError(
            f"messages: {length:,} characters; this server takes {limits.characters:,}",
            param="messages",
            code="context_length_exceeded",
        )
    if turns[-1].role != "user" or is_blank(turns[-1].content):
        raise RefusedRequestError("messages: the last one has to be a user's, with text in it", param="messages")
    return turns


def _turn(message: Any, place: str) -> Turn:
    if not isinstance(message, dict):
        raise RefusedRequestError(f"{place}: not a message, but {quote(message)}", param=place)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RefusedRequestError(
            f"{place}.role: {quote(role)} is not supported; use system, user or assistant", param=f"{place}.role"
        )
    for name, value in message.items():
        if name not in {"role", "content", *IGNORED_IN_MESSAGES} and value not in (None, []):
            raise RefusedRequestError(
                f"{place}: {quote(name)} is not supported", param=place, code="unsupported_parameter"
            )
    known: Literal["system", "user", "assistant"] = ROLES[role]  # type: ignore[assignment]
    return Turn(known, _text(message.get("content"), f"{place}.content"))


def _text(content: Any, place: str) -> str:
    if isinstance(content, list):
        text = "\n".join(_part(part, f"{place}[{number}]") for number, part in enumerate(content))
    elif isinstance(content, str):
        text = content
    else:
        raise RefusedRequestError(f"{place}: a text is needed, not {quote(content)}", param=place)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedRequestError(f"{place}: half of a character (a lone surrogate)", param=place) from None
    return text


def _part(part: Any, place: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise RefusedRequestError(
        f"{place}: {quote(kind)} is not supported; this server reads text alone",
        param=place,
        code="unsupported_content",
    )
