"""What the official client gets from the server: answers, whole and as a stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.runs.units import UnitFailedError
from stairdata.serving.answers import AnswerForm, parts_of
from stairdata.serving.protocol import ChosenAnswer
from stairdata_schemas.errors import ModelError, ServerError
from stairdata_schemas.grammar import TAGS
from stairdata_schemas.rendering import Turn
from tests.stairdata.serving.conftest import ANSWER, PATIENCE

if TYPE_CHECKING:
    from tests.stairdata.serving.conftest import RunningServer, ScriptedSearcher

Serve = Callable[..., "RunningServer"]
ASKED: Any = [{"role": "user", "content": "What do I drink?"}]
STEPS = "Title: Problem Analysis:\nwho asks?\n\nTitle: Plan:\nnaïve 👩🏽‍🚀\n\nsecond"
OUTPUT = "Water.\n\nDrink it."


def test_the_answer_and_its_steps(serve: Serve, searcher: ScriptedSearcher) -> None:
    client = serve().client()
    answer = client.chat.completions.create(
        model="actor", messages=ASKED, seed=7, temperature=0.5, top_p=0.8, max_completion_tokens=99
    )
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role) == (OUTPUT, "assistant")
    extra = choice.message.model_extra
    assert extra == {"reasoning": STEPS, "reasoning_content": STEPS}
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (21, 340, 361)
    (question,) = searcher.questions
    assert question.conversation == (Turn("user", "What do I drink?"),)
    assert (question.seed, question.temperature, question.top_p, question.max_tokens) == (7, 0.5, 0.8, 99)


def test_without_a_seed_no_two_searches_are_the_same(serve: Serve, searcher: ScriptedSearcher) -> None:
    client = serve().client()
    for _ in range(2):
        client.chat.completions.create(model="actor", messages=ASKED)
    one, other = searcher.questions
    assert one.seed != other.seed
    assert (one.temperature, one.top_p, one.max_tokens) == (None, None, None)


def test_models(serve: Serve) -> None:
    (model,) = serve().client().models.list().data
    assert (model.id, model.owned_by) == ("actor", "stairdata")


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_stream_says_the_same(serve: Serve, with_usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if with_usage else {}
    stream = serve().client().chat.completions.create(model="actor", messages=ASKED, stream=True, **options)
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    if with_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.total_tokens == 361
    assert all(chunk.usage is None for chunk in chunks)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == OUTPUT
    for name in ("reasoning", "reasoning_content"):
        assert "".join((delta.model_extra or {}).get(name, "") for delta in deltas) == STEPS
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len(chunks) > 5, "it comes in pieces"


def test_a_stream_is_kept_alive_while_the_search_runs(serve: Serve, searcher: ScriptedSearcher) -> None:
    server = serve(keep_alive=0.01)
    searcher.release.clear()
    connection = server.connect()
    body = json.dumps({"model": "actor", "messages": ASKED, "stream": True})
    connection.request("POST", "/v1/chat/completions", body, _headers())
    answer = connection.getresponse()
    assert answer.getheader("content-type", "").startswith("text/event-stream")
    assert [answer.readline() for _ in range(6)] == [b": searching\n", b"\n"] * 3
    searcher.release.set()
    rest = answer.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    connection.close()


def _headers() -> dict[str, str]:
    from tests.stairdata.serving.conftest import KEY

    return {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


@pytest.mark.parametrize("is_stream", [True, False])
def test_steps_can_be_hidden(serve: Serve, is_stream: bool) -> None:
    server = serve(hides_reasoning=True)
    body = json.dumps({"model": "actor", "messages": ASKED, "stream": is_stream}).encode()
    connection = server.connect()
    connection.request("POST", "/v1/chat/completions", body, _headers())
    text = connection.getresponse().read().decode()
    connection.close()
    assert "Drink it." in text
    assert "reasoning" not in text
    assert "who asks" not in text


@pytest.mark.parametrize("text", ["I can't help with that.", f"{ANSWER}\nmore", ANSWER[:80], ""])
@pytest.mark.parametrize("is_complete", [True, False])
def test_an_answer_outside_the_grammar_comes_whole(
    serve: Serve, searcher: ScriptedSearcher, text: str, is_complete: bool
) -> None:
    searcher.found = searcher.found._replace(text=text, is_complete=is_complete)
    answer = serve().client().chat.completions.create(model="actor", messages=ASKED)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.model_extra == {"reasoning": None, "reasoning_content": None}
    assert answer.choices[0].finish_reason == ("stop" if is_complete else "length")


HOSTILE = [
    "<|im_end|>",
    "<|im_start|>system\n",
    "</s>",
    "\n\ndata: [DONE]\n\n",
    "\r\n: x",
    "<script>",
    "\u2028",
    "\x00",
    '"}',
]
model_texts = st.lists(st.sampled_from([*HOSTILE, *TAGS, "Title: A\n", "Final Answer:\n", "x", "\n", "👩🏽‍🚀"])).map(
    "".join
)


@given(model_texts, st.booleans())
def test_what_the_model_wrote_is_data(text: str, is_well_formed: bool) -> None:
    """Each event is one line of JSON whatever the text holds, and the pieces joined are the text."""
    if is_well_formed:
        clean = text
        for tag in TAGS:
            clean = clean.replace(tag, "")
        step = f"<|Reasoning_step|>\nTitle: A{clean}\nb\n<|/Reasoning_step|>"
        text = f"{step}\n\n<|Output|>\nFinal Answer:\nx{clean}\n<|/Output|>"
    found = ChosenAnswer(text, is_complete=True, prompt_tokens=1, completion_tokens=1)
    events = b"".join(AnswerForm("actor").events(found)).split(b"\n\n")
    assert events.pop() == b""
    assert events.pop() == b"data: [DONE]"
    deltas = []
    for each in events:
        assert each.startswith(b"data: {")
        assert b"\n" not in each
        deltas.append(json.loads(each.removeprefix(b"data: "))["choices"][0]["delta"])
    parts = parts_of(text)
    assert "".join(delta.get("content", "") for delta in deltas) == parts.content
    assert "".join(delta.get("reasoning", "") for delta in deltas) == parts.reasoning
    if is_well_formed:
        assert parts.content == f"x{clean}"
    else:
        assert parts.content == text or parts.steps


def test_an_answer_goes_back_as_history(serve: Serve, searcher: ScriptedSearcher) -> None:
    """The client's own object, and texts that spell control tokens: turns, and nothing but text."""
    client = serve().client()
    first = client.chat.completions.create(model="actor", messages=ASKED)
    messages: Any = [
        {"role": "developer", "content": "Be brief.<|im_end|>"},
        *ASKED,
        first.choices[0].message,
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "<|Output|>?"}]},
    ]
    client.chat.completions.create(model="actor", messages=messages, user="somebody", n=1, logprobs=False)
    assert searcher.questions[1].conversation == (
        Turn("system", "Be brief.<|im_end|>"),
        Turn("user", "What do I drink?"),
        Turn("assistant", OUTPUT),
        Turn("user", "And\n<|Output|>?"),
    )


FAILURES = [
    (RequestFailedError([Outcome.INVALID_REQUEST], "the prompt has 9 tokens"), 400, "the prompt has 9 tokens"),
    (RequestFailedError([Outcome.SERVER_ERROR], "oh\nno"), 502, "oh\\nno"),
    (UnitFailedError("prm_not_finite", "the text"), 502, "prm_not_finite"),
    (ServerError("the server of 'x' is no longer running; its whole log: '/home/me'"), 503, "is gone"),
    (ValueError("/home/me"), 500, "an error inside"),
    (ModelError("the reward model in '/home/me' wants more memory"), 500, "an error inside"),
]


@pytest.mark.parametrize(("error", "status", "words"), FAILURES)
def test_a_search_that_fails(
    serve: Serve, searcher: ScriptedSearcher, error: Exception, status: int, words: str
) -> None:
    searcher.error = error
    server = serve()
    with pytest.raises(openai.APIStatusError) as caught:
        server.client(max_retries=2).chat.completions.create(model="actor", messages=ASKED)
    assert caught.value.status_code == status
    assert words in str(caught.value)
    assert "/home/me" not in str(caught.value)
    assert len(searcher.questions) == 1, "the client does not ask again"
    with pytest.raises(openai.APIError, match=words.replace("\\", ".")):
        list(server.client().chat.completions.create(model="actor", messages=ASKED, stream=True))
    assert (server.service.failure is error) == (status == 503)


def test_what_can_not_be_answered_is_refused_before_a_stream_begins(serve: Serve, searcher: ScriptedSearcher) -> None:
    searcher.refuses = RequestFailedError([Outcome.INVALID_REQUEST], "no room")
    with pytest.raises(openai.BadRequestError, match="no room"):
        serve().client().chat.completions.create(model="actor", messages=ASKED, stream=True)
    assert searcher.questions == []
    searcher.refuses = ModelError("the template takes no system message")
    with pytest.raises(openai.BadRequestError, match="takes no system message"):
        serve().client().chat.completions.create(model="actor", messages=ASKED)
    assert searcher.questions == []


def test_a_search_that_takes_too_long_is_cancelled(serve: Serve, searcher: ScriptedSearcher) -> None:
    searcher.release.clear()
    with pytest.raises(openai.InternalServerError, match="longer than this server allows"):
        serve(seconds=0.05).client(max_retries=2).chat.completions.create(model="actor", messages=ASKED)
    assert searcher.is_cancelled()
    assert len(searcher.questions) == 1


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_hangs_up_ends_its_search(serve: Serve, searcher: ScriptedSearcher, is_stream: bool) -> None:
    server = serve(in_flight=1)
    searcher.release.clear()
    connection = server.connect()
    body = json.dumps({"model": "actor", "messages": ASKED, "stream": is_stream})
    connection.request("POST", "/v1/chat/completions", body, _headers())
    assert searcher.is_begun()
    if is_stream:
        assert connection.getresponse().readline() == b": searching\n"
    connection.close()
    assert searcher.is_cancelled()
    searcher.release.set()
    assert _asked_until_admitted(server).choices[0].message.content == OUTPUT, "its place is free again"


def _asked_until_admitted(server: RunningServer) -> Any:
    return server.client(max_retries=20).chat.completions.create(model="actor", messages=ASKED, timeout=PATIENCE)


def test_searches_in_excess_are_sent_away(serve: Serve, searcher: ScriptedSearcher) -> None:
    server = serve(in_flight=2)
    searcher.release.clear()
    body = json.dumps({"model": "actor", "messages": ASKED}).encode()
    held = [server.connect() for _ in range(2)]
    for connection in held:
        connection.request("POST", "/v1/chat/completions", body, _headers())
        assert searcher.is_begun()
    status, answer, headers = server.send(body=body)
    assert (status, answer["error"]["type"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(headers["Retry-After"]) <= 60
    with pytest.raises(openai.RateLimitError):
        server.client().chat.completions.create(model="actor", messages=ASKED, stream=True)
    assert len(server.client().models.list().data) == 1, "what costs nothing is answered"
    searcher.release.set()
    for connection in held:
        assert connection.getresponse().status == 200
        connection.close()
    assert server.send(body=body)[0] == 200
    assert server.service.admission.in_work == 0
