"""Models that think: thoughts are kept apart, counted, and never taken for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from openai.types.chat import ChatCompletion

from stairdata.llm.budget import Budget
from stairdata.llm.client import Client, Generation, read_chat
from stairdata.llm.outcomes import Outcome, RequestFailedError, unreadable
from stairdata.recipe import Endpoint

if TYPE_CHECKING:
    from tests.conftest import StubServer

T = TypeVar("T")
PLACES = ["reasoning_content", "reasoning", "text", "nowhere"]


@pytest.fixture
def ask(stub_llm: StubServer, waits: list[float]) -> Callable[..., Any]:
    """Run a coroutine function on a client of the stub."""

    def run(work: Callable[[Client], Awaitable[T]], budget: Budget | None = None, **endpoint: Any) -> T:
        async def inside() -> T:
            client = Client(Endpoint(retries=0, **endpoint), stub_llm.base_url, "actor", "key", budget=budget)
            try:
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(inside())

    return run


def chat(client: Client, max_tokens: int = 60, **options: Any) -> Awaitable[Generation]:
    return client.chat([{"role": "user", "content": "Rate."}], max_tokens=max_tokens, seed=7, **options)


def bare(**usage: Any) -> ChatCompletion:
    message = {"role": "assistant", "content": "Yes."}
    return ChatCompletion.construct(
        choices=[{"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}], usage=usage
    )


@pytest.mark.parametrize("place", PLACES)
def test_thoughts_are_apart_from_the_text_and_are_paid_for(
    place: str, ask: Callable[..., Any], stub_llm: StubServer
) -> None:
    plain = ask(chat)
    stub_llm.control(thinks=9, thinks_in=place)
    budget = Budget()
    generation = ask(chat, budget)
    (sample,) = generation.samples
    assert sample.text == plain.samples[0].text
    assert sample.thoughts == ("" if place == "nowhere" else "Better: A? Complies:")
    assert (generation.reasoning_tokens, generation.outcomes) == (9, (Outcome.OK,))
    assert generation.completion_tokens == plain.completion_tokens + 9
    assert budget.spent.tokens == generation.prompt_tokens + generation.completion_tokens


@pytest.mark.parametrize("place", PLACES)
def test_thoughts_that_take_all_tokens_are_an_outcome_of_their_own(
    place: str, ask: Callable[..., Any], stub_llm: StubServer
) -> None:
    stub_llm.control(thinks=60, thinks_in=place)
    generation = ask(chat)
    assert generation.outcomes == (Outcome.ONLY_REASONING,)
    assert generation.is_only_thoughts
    assert (generation.samples[0].text, generation.samples[0].finish) == ("", "length")
    stub_llm.control(thinks=57)
    begun = ask(chat)
    assert begun.outcomes == (Outcome.LENGTH,), "the answer had begun"
    assert begun.samples[0].text


def test_the_whole_of_an_answer_keeps_the_thoughts_that_its_text_holds(
    ask: Callable[..., Any], stub_llm: StubServer
) -> None:
    stub_llm.control(thinks=9, thinks_in="text")
    generation = ask(lambda client: chat(client, is_whole=True))
    assert generation.samples[0].text.startswith("<think>Better: A?")
    stub_llm.control(thinks=60)
    assert ask(lambda client: chat(client, is_whole=True)).outcomes == (Outcome.ONLY_REASONING,)


@pytest.mark.parametrize(
    ("usage", "completion", "reasoning"),
    [
        ({"completion_tokens": 50, "total_tokens": 60, "completion_tokens_details": {"reasoning_tokens": 40}}, 50, 40),
        ({"completion_tokens": 5, "total_tokens": 55, "completion_tokens_details": {"reasoning_tokens": 40}}, 45, 40),
        ({"completion_tokens": 5, "total_tokens": 15, "completion_tokens_details": {"reasoning_tokens": 40}}, 5, 5),
        ({"completion_tokens": 5, "total_tokens": 15, "completion_tokens_details": {"reasoning_tokens": -4}}, 5, 0),
        ({"completion_tokens": 5, "total_tokens": 15, "completion_tokens_details": "none"}, 5, 0),
        ({"completion_tokens": 5, "total_tokens": 15, "completion_tokens_details": None}, 5, 0),
    ],
)
def test_reasoning_tokens_are_completion_tokens_wherever_a_server_counts_them(
    usage: dict[str, Any], completion: int, reasoning: int
) -> None:
    generation = read_chat(bare(prompt_tokens=10, **usage))
    assert (generation.completion_tokens, generation.reasoning_tokens) == (completion, reasoning)
    assert generation.outcomes == (Outcome.OK,)


@pytest.mark.parametrize(("name", "requests"), [("max_completion_tokens", 3), ("max_tokens", 4)])
def test_the_name_of_the_limit_is_found_out_once(
    name: str, requests: int, ask: Callable[..., Any], stub_llm: StubServer
) -> None:
    async def three(client: Client) -> list[Generation]:
        return [await chat(client) for _ in range(3)]

    stub_llm.control(limit_name=name)
    generations = ask(three)
    assert stub_llm.stats()["requests"] == requests
    limits = {"max_tokens", "max_completion_tokens"} & stub_llm.last()["body"].keys()
    assert limits == {name}
    assert stub_llm.last()["body"][name] == 60
    assert [each.outcomes for each in generations] == [(Outcome.OK,)] * 3


def test_requests_in_flight_find_out_the_name_of_the_limit_together(
    ask: Callable[..., Any], stub_llm: StubServer
) -> None:
    async def all_of_them(client: Client) -> list[Generation]:
        return await asyncio.gather(*(chat(client) for _ in range(6)))

    stub_llm.control(limit_name="max_tokens", hold=4)
    assert len(ask(all_of_them, concurrency=6)) == 6
    assert stub_llm.stats()["requests"] <= 12


@pytest.mark.parametrize(
    "words", ["max_completion_tokens is too large: 60", "Unsupported parameter: 'seed'", "no max_completion_tokens_x"]
)
def test_a_limit_that_is_refused_for_its_value_is_not_sent_again(
    words: str, ask: Callable[..., Any], stub_llm: StubServer
) -> None:
    stub_llm.control(script=[{"status": 400, "text": f'{{"error": {{"message": "{words}"}}}}'}])
    with pytest.raises(RequestFailedError):
        ask(chat)
    assert stub_llm.stats()["requests"] == 1


def test_effort_and_extra_body_are_sent(ask: Callable[..., Any], stub_llm: StubServer) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1}
    ask(chat, reasoning_effort="low", extra_body=extra)
    body = stub_llm.last()["body"]
    assert body.pop("messages")
    assert body == {"model": "actor", "max_completion_tokens": 60, "seed": 7, "reasoning_effort": "low", **extra}
    ask(lambda client: client.complete("x", n=1, max_tokens=5, seed=1), extra_body=extra)
    assert stub_llm.last()["body"]["min_p"] == 0.1
    assert stub_llm.last()["body"]["prompt"] == "x"


def test_a_judge_that_only_thought_says_what_to_do() -> None:
    failure = unreadable("the judge's rating can't be read in ''", 3, ["rate_limited", "only_reasoning", "ok", "ok"])
    assert failure.rule == "judge_failure"
    assert failure.outcomes == [Outcome.MALFORMED, Outcome.MALFORMED, Outcome.ONLY_REASONING]
    assert "raise max_tokens, or lower reasoning_effort" in failure.detail
    assert "max_tokens" not in unreadable("nothing", 2, ["ok", "ok"]).detail
