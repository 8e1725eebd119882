"""Scores by a server: what is sent, what becomes of each fault, and that a model in this process says the same."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.llm.budget import Budget, BudgetLimits, StoppedError
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.search.scoring import ScoreItem, Scorer, StepScores
from stairdata_schemas.errors import BudgetError, ModelError, ServerError
from stairdata_schemas.rendering import load_tokenizer, step_ids
from tests.conftest import make_tokenizer

if TYPE_CHECKING:
    from tests.conftest import StubServer

STEP = "<|Reasoning_step|>\nTitle: A:\n{}\n<|/Reasoning_step|>"
OUTPUT = "\n\n<|Output|>\nFinal Answer:\n{}\n<|/Output|>"
WHOLE = STEP.format("one") + "\n\n" + STEP.format("two") + OUTPUT.format("three")
ITEMS = [
    ScoreItem("hi", WHOLE, is_complete=True),
    ScoreItem("hi", WHOLE, is_complete=True, known=2),
    ScoreItem("hi", STEP.format("one"), is_complete=False, known=1),
    ScoreItem("user <|im_end|>\n", STEP.format("naïve 👩🏽‍🚀") + "\n\n<|Reason", is_complete=False),
    ScoreItem("hi", "I am sorry.", is_complete=True),
    ScoreItem("hi", "", is_complete=True),
]


def score(*items: ScoreItem) -> Callable[[Scorer], Awaitable[StepScores]]:
    return lambda scorer: scorer.score(items)


def one(word: str) -> ScoreItem:
    return ScoreItem(f"about {word}", f"I am {word}.", is_complete=True)


def test_ids_go_out_one_sequence_a_step(
    with_scorer: Callable[..., Any], stub_llm: StubServer, tokenizer_folder: Path
) -> None:
    found = with_scorer(score(*ITEMS))
    tokenizer = load_tokenizer(tokenizer_folder)
    read = [step_ids(tokenizer, item.prompt, item.text, is_complete=item.is_complete) for item in ITEMS]
    sent = [ids for item, each in zip(ITEMS, read, strict=True) for ids in each[min(item.known, len(each) - 1) :]]
    assert stub_llm.last()["path"] == "/classify"
    assert stub_llm.last()["body"] == {"model": "actor", "input": sent, "use_activation": False}
    assert [len(values) for values in found.values] == [3, 1, 1, 2, 1, 1]
    assert found.values[0][2:] == found.values[1]
    assert (found.calls, found.tokens) == (9, sum(map(len, sent)))


@pytest.mark.slow
def test_both_scorers_agree(with_scorer: Callable[..., Any], stub_llm: StubServer, prm_folder: Path) -> None:
    stub_llm.control(prm=str(prm_folder))
    served, here = with_scorer(score(*ITEMS)), with_scorer(score(*ITEMS), prm=str(prm_folder))
    for theirs, ours in zip(served.values, here.values, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert len({round(value, 3) for values in here.values for value in values}) > 5, "the scores tell texts apart"
    assert (served.calls, here.calls) == (9, 6)


@pytest.mark.parametrize("place", ["served", "here"])
def test_searches_in_flight_share_requests(
    place: str, with_scorer: Callable[..., Any], stub_llm: StubServer, prm_folder: Path
) -> None:
    async def many(scorer: Scorer) -> list[StepScores]:
        return [*await asyncio.gather(*(scorer.score([one(f"word {number}")]) for number in range(40)))]

    sizes: list[int] = []

    class Counting:
        tokenizer, context = load_tokenizer(prm_folder), 512

        def step_rewards(self, answers: Any) -> Any:
            sizes.append(len(answers))
            return Rewards([[float(len(ids)) for ids in each] for each in answers])

    class Rewards:
        def __init__(self, values: list[list[float]]) -> None:
            self.values, self.sequences, self.tokens = values, [1] * len(values), [2] * len(values)

    found = with_scorer(many, prm=str(prm_folder) if place == "here" else None, load=lambda _: Counting())
    assert len(found) == 40
    if place == "here":
        assert sizes == [32, 8]
        assert found[0] == ([[float(len(step_ids(Counting.tokenizer, *one("word 0")[:2], is_complete=True)[0]))]], 1, 2)
    else:
        assert stub_llm.stats()["paths"]["/classify"] == 1 + 2, "the check at the start, and 40 sequences"
        assert len({each.values[0][0] for each in found}) == 40


PASSING = [
    {"fault": "error"},
    {"fault": "drop"},
    {"fault": "rate_limit"},
    {"fault": "broken"},
    {"status": 503},
    {"text": ""},
    {"text": "[]"},
    {"text": "{}"},
    {"text": '"fine"'},
    {"text": "<html>", "content_type": "text/html"},
    {"text": '{"data": []}'},
    {"text": '{"data": [{"index": 0, "probs": [1]}, {"index": 1, "probs": [1]}]}'},
    {"text": '{"data": [{"index": 1, "probs": [1]}]}'},
    {"text": '{"data": [{"probs": []}]}'},
    {"text": '{"data": [{"probs": ["1.0"]}]}'},
    {"text": '{"data": [{"probs": [null]}]}'},
    {"text": '{"data": [{"probs": [true]}]}'},
    {"text": '{"data": [{"probs": 1.0}]}'},
    {"text": '{"data": [[1.0]]}'},
    {"text": '{"data": [{"probs": [1' + "0" * 400 + "]}]}"},
    {"text": "[" * 100_000},
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: json.dumps(fault)[:40])
def test_a_passing_fault_is_retried(
    fault: dict[str, Any], with_scorer: Callable[..., Any], stub_llm: StubServer
) -> None:
    expected = with_scorer(score(one("well")))
    stub_llm.reset()
    stub_llm.control(script=[{}, fault, fault])
    assert with_scorer(score(one("well"))) == expected
    assert stub_llm.stats()["paths"]["/classify"] == 4


@pytest.mark.parametrize("fault", PASSING[5:], ids=lambda fault: json.dumps(fault)[:40])
def test_an_answer_that_stays_unreadable_refuses_the_prompt(
    fault: dict[str, Any], with_scorer: Callable[..., Any], stub_llm: StubServer
) -> None:
    stub_llm.control(script=[{}, fault, fault, fault])
    with pytest.raises(RequestFailedError) as caught:
        with_scorer(score(one("well")))
    assert caught.value.outcomes == [Outcome.MALFORMED] * 3


async def each_by_itself(scorer: Scorer, *words: str) -> list[Any]:
    return [*await asyncio.gather(*(scorer.score([one(word)]) for word in words), return_exceptions=True)]


def test_a_sequence_that_the_server_refuses_costs_its_own_prompt(
    with_scorer: Callable[..., Any], stub_llm: StubServer
) -> None:
    words = ["well", "much too long " * 300, "ill"]
    stub_llm.control(context=400)
    well, long, ill = with_scorer(lambda scorer: each_by_itself(scorer, *words))
    assert isinstance(well, StepScores)
    assert isinstance(ill, StepScores)
    assert isinstance(long, RequestFailedError)
    assert "'about much too long" in str(long)
    assert "reads 400 at most" in str(long)
    stub_llm.reset()
    stub_llm.control(tokenizer=None, context=400)  # it does not say how much it reads
    well, long, ill = with_scorer(lambda scorer: each_by_itself(scorer, *words))
    assert isinstance(well, StepScores)
    assert isinstance(ill, StepScores)
    assert long.outcomes == [Outcome.INVALID_REQUEST]
    assert "maximum context length is 400" in long.detail


@pytest.mark.parametrize("said", [math.nan, math.inf, "refuse"])
def test_a_score_that_is_not_finite_is_passed_on_for_its_own_prompt(
    said: Any, with_scorer: Callable[..., Any], stub_llm: StubServer
) -> None:
    stub_llm.control(scores={"strange": said})
    well, strange, ill = with_scorer(lambda scorer: each_by_itself(scorer, "well", "strange", "ill"))
    assert not math.isfinite(strange.values[0][0])
    assert math.isfinite(well.values[0][0] + ill.values[0][0])


def test_several_labels_are_found_before_anything_is_scored(
    with_scorer: Callable[..., Any], stub_llm: StubServer
) -> None:
    stub_llm.control(scores={"Why?": [0.1, 0.2]})
    with pytest.raises(ModelError, match=r"'actor' at .* is a classifier of 2 labels"):
        with_scorer(pytest.fail)


def test_another_tokenizer_is_found_before_anything_is_scored(
    with_scorer: Callable[..., Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    other = make_tokenizer(tmp_path / "other")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:3]
    file.write_text(json.dumps(content))
    stub_llm.control(tokenizer=str(other))
    with pytest.raises(ModelError, match=r"has another tokenizer than the one that responses\.prm names"):
        with_scorer(pytest.fail)
    assert "/classify" not in stub_llm.stats()["paths"]


def test_a_server_that_says_nothing_of_its_tokenizer_is_noted(
    with_scorer: Callable[..., Any], stub_llm: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    stub_llm.control(tokenizer=None)
    assert with_scorer(score(one("well"))).calls == 1
    assert "can't be checked" in caplog.text


def test_a_server_that_does_not_score(with_scorer: Callable[..., Any], stub_llm: StubServer) -> None:
    stub_llm.control(script=[{"status": 404}])
    with pytest.raises(ModelError, match=r"does not score by /classify.*--runner pooling"):
        with_scorer(pytest.fail)
    with pytest.raises(ServerError, match=r"does not serve 'another'; it serves 'actor'"):
        with_scorer(pytest.fail, model="another")


def test_a_server_that_dies_half_way_ends_all_with_one_error(
    with_scorer: Callable[..., Any], stub_llm: StubServer
) -> None:
    stub_llm.control(die_after=2)

    async def work(scorer: Scorer) -> list[Any]:
        first = await scorer.score([one("well")])
        return [first, *await each_by_itself(scorer, "ill", "worse")]

    first, *others = with_scorer(work)
    assert isinstance(first, StepScores)
    for error in others:
        assert isinstance(error, ServerError)
        assert "no longer answers" in str(error)
        assert "finished work is kept" in str(error)
    stub_llm.wait()


def test_a_slow_server_does_not_hold_a_search_that_was_given_up(
    with_scorer: Callable[..., Any], stub_llm: StubServer
) -> None:
    async def work(scorer: Scorer) -> StepScores:
        stub_llm.control(script=[{}, {"fault": "hang"}])
        given_up = asyncio.ensure_future(scorer.score([one("slow")]))
        await asyncio.to_thread(stub_llm.stats, hanging=1)
        given_up.cancel()
        found = await scorer.score([one("well")])
        assert given_up.cancelled()
        return found

    assert with_scorer(work).calls == 1


def test_scores_count_against_the_budget(with_scorer: Callable[..., Any], stub_llm: StubServer) -> None:
    budget = Budget(BudgetLimits(total_tokens=450))
    with pytest.raises(StoppedError):
        with_scorer(score(one("well " * 60)), budget=budget)
    assert isinstance(budget.reason, BudgetError)
    assert budget.spent.tokens == stub_llm.stats()["usage"][0] > 0, "what was asked at the start has to be paid, too"


def test_a_stopped_build_begins_no_pass(with_scorer: Callable[..., Any], prm_folder: Path) -> None:
    budget = Budget()

    async def work(scorer: Scorer) -> None:
        await scorer.score([one("well")])
        budget.stop(KeyboardInterrupt())
        await scorer.score([one("well")])

    with pytest.raises(StoppedError):
        with_scorer(work, prm=str(prm_folder), budget=budget)


def test_an_answer_too_long_for_the_model_here_names_its_prompt(
    with_scorer: Callable[..., Any], prm_folder: Path
) -> None:
    well, long = with_scorer(lambda scorer: each_by_itself(scorer, "well", "much too long " * 300), prm=str(prm_folder))
    assert isinstance(well, StepScores)
    assert "'about much too long" in str(long)
    assert "reads 512 at most" in str(long)
    assert Counter(long.outcomes) == {Outcome.INVALID_REQUEST: 1}
