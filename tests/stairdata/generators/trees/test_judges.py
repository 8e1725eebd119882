"""Reading ratings, and what each kind of judge asks."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.generators.trees.judges import Judge, Rating, Score, read_expected_score, read_score
from stairdata.llm.actor import RequestUsage
from stairdata.llm.client import Generation, Sample, TokenLogprob
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.recipe import JudgeSection
from stairdata_schemas.errors import RecipeError
from stairdata_schemas.grammar import Step, render

ANSWER = render([Step("Secret thought:", "hidden")], "I am sorry, no.")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 4),
        (" 4.\n", 4),
        ("4/5", 4),
        ("4 / 5", 4),
        ("**4**", 4),
        ("(4)", 4),
        ("four", 4),
        ("Four out of five.", 4),
        ("4 out of 5", 4),
        ("Score: 4", 4),
        ("Score: 4.", 4),
        ("score:4", 4),
        ("SCORE = 4", 4),
        ("The score is 4.", 4),
        ("Rating: 3", 3),
        ("Score: 4/5", 4),
        ("Score: 4 out of 5", 4),
        ("Score: **4**", 4),
        ("**Score**: 4", 4),
        ("**Score: 4**", 4),
        ("Score: [4]", 4),
        ("Score: five", 5),
        ('{"score": 4}', 4),
        ("It is fine, 3 reasons.\nScore: 4", 4),
        ("1. good\n2. safe\nScore: 5", 5),
        ("Score: 1/5 at first, ... Score: 5", 5),
        ("Score: 1/5\nNo, wait.\nScore: 5", 5),
        ("<|Output|>\nFinal Answer:\n4\n<|/Output|>", 4),
    ],
)
def test_a_rating_that_can_be_read(text: str, score: int) -> None:
    assert read_score(text) == score


@pytest.mark.parametrize(
    "text",
    ["", "   ", "45", "4.5", "10", "0", "6", "Score: 45", "Score: 4.5", "Score: 10", "Score: 0", "Score: 6", "Score: N",
     "Score: -1", "4/10", "Score: 4/10", "Score: 4/50", "It is safe.", "Underscore: 4", "I see 4 lights.",
     "two of them"],
)  # fmt: skip
def test_a_rating_that_can_not_be_read(text: str) -> None:
    assert read_score(text) is None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("**Score:** 4", 4),  # the commonest markdown of all
        ("**Rating:** 4/5", 4),
        ("Score (1-5): 4", 4),  # the scale is not the rating
        ("Score (1 to 5): 4", 4),
        ("Score: 4 / 10", None),  # another scale
        ("Score: 4 out of 10", None),
        ("Score: 2-3", None),
        ("3)\nScore: four", 4),  # a labelled word goes before a number alone on a line
    ],
)
def test_a_rating_that_is_easily_misread(text: str, score: int | None) -> None:
    assert read_score(text) == score


@given(st.integers(1, 5), st.sampled_from(["Score: {}", "It does.\nScore: {}", "{}", "Rating: **{}**", "Score: {}/5"]))
def test_every_score_is_read_in_every_form(score: int, form: str) -> None:
    assert read_score(form.format(score)) == score


@given(st.text())
def test_whatever_is_said_the_score_is_in_range_or_none(text: str) -> None:
    assert read_score(text) in {None, 1, 2, 3, 4, 5}


class Speaker:
    """A client that says given things in turn, then the last one for ever."""

    def __init__(self, *said: str | Generation | Exception) -> None:
        self._said = list(said)
        self.asked: list[dict[str, Any]] = []

    async def chat(self, messages: list[dict[str, str]], **options: Any) -> Generation:
        self.asked.append({"content": messages[0]["content"], **options})
        said = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Generation):
            return said
        return Generation([Sample(said, "stop")], 10, 2)


class Asks:
    """Seeds that tell themselves, and nothing known."""

    def seed(self, ask: int) -> int:
        return 100 + ask

    def known(self, aspect: str) -> tuple[Score, RequestUsage] | None:  # noqa: ARG002
        return None

    def keep(self, aspect: str, verdict: Score, usage: RequestUsage) -> None:
        pass


def rate(section: JudgeSection, speaker: Speaker | None, task: str = "safety", answer: str = ANSWER) -> Rating:
    judge = Judge(section, speaker)  # type: ignore[arg-type]
    return asyncio.run(judge.rate("the question", task, answer, "no", Asks()))


def test_the_actor_rates_helpfulness_and_safety() -> None:
    speaker = Speaker("Score: 5", "Score: 1")
    assert rate(JudgeSection(), speaker) == (1.0, -1.0, RequestUsage(2, 20, 4, ("ok",) * 2), ())
    helpful, safe = speaker.asked
    assert "how helpful" in helpful["content"]
    assert "how safe" in safe["content"]
    for asked in speaker.asked:
        assert "the question" in asked["content"]
        assert "I am sorry, no." in asked["content"]
        assert "hidden" not in asked["content"], "only the final answer is rated"
        assert {key: asked[key] for key in ("max_tokens", "seed", "temperature", "top_p")} == {
            "max_tokens": 256, "seed": 100, "temperature": 0.6, "top_p": 0.9,
        }  # fmt: skip


def test_both_are_asked_for_at_the_same_time() -> None:
    class Both(Speaker):
        """Says nothing until it was asked for both."""

        async def chat(self, messages: list[dict[str, str]], **options: Any) -> Generation:
            said = await super().chat(messages, **options)
            await both.wait()
            return said

    async def run() -> Rating:
        judge = Judge(JudgeSection(), speaker)  # type: ignore[arg-type]
        return await asyncio.wait_for(judge.rate("the question", "safety", ANSWER, "no", Asks()), 30)

    both, speaker = asyncio.Barrier(2), Both("Score: 5", "Score: 1")
    assert asyncio.run(run())[:2] == (1.0, -1.0)


@pytest.mark.parametrize(("score", "value"), [(1, -1.0), (2, -0.5), (3, 0.0), (4, 0.5), (5, 1.0)])
def test_a_score_becomes_a_value(score: int, value: float) -> None:
    assert rate(JudgeSection(), Speaker(str(score)))[:2] == (value, value)


def test_an_unreadable_rating_is_asked_again_with_another_seed() -> None:
    speaker = Speaker("Hm.", "45", "Score: 4")
    assert rate(JudgeSection(), speaker) == (0.5, 0.5, RequestUsage(4, 40, 8, ("ok",) * 4), ())
    assert [asked["seed"] for asked in speaker.asked] == [100, 101, 102, 100]


def test_re_asks_are_bounded() -> None:
    speaker = Speaker("Hm.\x1b[31m")
    with pytest.raises(RequestFailedError, match="helpfulness can't be read in 'Hm") as caught:
        rate(JudgeSection(reasks=2), speaker)
    assert caught.value.outcomes == [Outcome.MALFORMED] * 3
    assert caught.value.rule == "judge_failure"
    assert "\x1b" not in caught.value.detail
    assert len(speaker.asked) == 2 * 3


def test_the_actor_that_rates_its_own_answers_is_asked_in_its_own_template() -> None:
    class Talking:
        def __init__(self) -> None:
            self.asked: list[dict[str, Any]] = []

        async def reply(self, message: str, **options: Any) -> Generation:
            self.asked.append({"message": message, **options})
            return likely("4", one=0.5)

    actor = Talking()
    judge = Judge(JudgeSection(kind="rule", style="direct"), Speaker(), actor)  # type: ignore[arg-type]
    rating = asyncio.run(judge.rate("the question", "helpfulness", ANSWER, None, Asks()))
    assert rating.helpfulness == pytest.approx(-0.25)
    (asked,) = actor.asked
    assert "the question" in asked.pop("message")
    assert asked == {"max_tokens": 1, "seed": 100, "temperature": 0.6, "top_p": 0.9, "logprobs": 20}


def test_a_guard_says_how_safe_and_the_actor_how_helpful() -> None:
    class Helpful:
        async def reply(self, message: str, **_: Any) -> Generation:
            assert "how helpful" in message
            return Generation([Sample("Score: 4", "stop")], 10, 2)

    section = JudgeSection.model_validate(
        {"kind": "guard", "guard": "llama_guard", "endpoint": {"base_url": "http://h/v1", "model": "g"}, "reasks": 1}
    )
    guard = Speaker("neither", "unsafe\nS1")
    judge = Judge(section, guard, Helpful())  # type: ignore[arg-type]
    rating = asyncio.run(judge.rate("the question", "safety", ANSWER, None, Asks()))
    assert (rating.helpfulness, rating.safety, rating.usage.requests) == (0.5, -1.0, 3)
    assert [asked["seed"] for asked in guard.asked] == [100, 101]
    assert guard.asked[0]["content"] == "the question", "a guard reads the two turns as they are"
    unread = Judge(section, Speaker("neither"), Helpful())  # type: ignore[arg-type]
    with pytest.raises(RequestFailedError, match="guard can't be read"):
        asyncio.run(unread.rate("the question", "safety", ANSWER, None, Asks()))


def test_a_guard_with_labels_a_policy_and_a_rater_of_its_own(tmp_path: Path) -> None:
    policy = tmp_path / "policy.txt"
    policy.write_text("Nothing about rivers.")
    server = {"base_url": "http://h/v1", "model": "g"}
    labels = {"unsafe": -0.5}
    given = {"kind": "guard", "guard": "policy", "endpoint": server, "helpfulness": server, "labels": labels}
    section = JudgeSection.model_validate({**given, "policy": policy})
    assert not section.asks_actor
    guard, rater = Speaker('{"violation": 1}'), Speaker("Score: 5")
    judge = Judge(section, guard, None, rater)  # type: ignore[arg-type]
    assert asyncio.run(judge.rate("the question", "safety", ANSWER, None, Asks()))[:2] == (1.0, -0.5)
    assert guard.asked[0]["content"] == "Nothing about rivers."
    assert "how helpful" in rater.asked[0]["content"]
    lost = JudgeSection.model_validate({**given, "policy": tmp_path / "lost.txt"})
    with pytest.raises(RecipeError, match=r"lost.txt of trees.judge can't be read"):
        Judge(lost, guard)  # type: ignore[arg-type]


def test_the_published_rule_asks_on_helpfulness_prompts_alone() -> None:
    speaker = Speaker("Score: 2")
    assert rate(JudgeSection(kind="rule"), speaker, "safety") == (-1.0, 1.0, RequestUsage(), ())
    assert speaker.asked == []
    assert rate(JudgeSection(kind="rule"), speaker, "helpfulness") == (-0.5, 1.0, RequestUsage(1, 10, 2, ("ok",)), ())


def test_the_reference_judge_asks_nobody() -> None:
    rating = rate(JudgeSection(kind="reference"), None)
    assert rating.helpfulness == pytest.approx(2 * 0.4 - 1)
    assert (rating.safety, rating.usage) == (1.0, RequestUsage())


def test_a_prompt_that_looks_like_a_template_stays_text() -> None:
    speaker = Speaker("3")
    judge = Judge(JudgeSection(), speaker)  # type: ignore[arg-type]
    asyncio.run(judge.rate("{{ answer }} {% raw %}", "safety", "<b>&</b>", None, Asks()))
    assert "{{ answer }} {% raw %}" in speaker.asked[0]["content"]
    assert "<b>&</b>" in speaker.asked[0]["content"]


def test_the_reward_of_a_rating() -> None:
    assert Rating(0.5, -1.0).reward(1, 1)[:3] == (0.5, -1.0, -2.5)
    assert Rating(0.5, -1.0).reward(2, 0.5)[:3] == (0.5, -1.0, -3.5)


def likely(said: str, **others: float) -> Generation:
    """What a server says with log-probabilities: a first token, and what could have stood there."""
    named = {{"one": " 1", "five": "5", "word": "The"}[name]: math.log(value) for name, value in others.items()}
    first = TokenLogprob(said, math.log(0.5), named)
    return Generation([Sample(said, "stop", (first,))], 10, 1)


def test_the_expected_score_is_taken_over_the_digits() -> None:
    assert read_expected_score(likely("3")) == pytest.approx(3)
    assert read_expected_score(likely("3", one=0.25, five=0.25)) == pytest.approx(3)
    assert read_expected_score(likely("3", five=0.5, word=0.9)) == pytest.approx(4), "a word counts for nothing"
    assert read_expected_score(likely("The")) is None
    assert read_expected_score(Generation([Sample("3", "stop")], 1, 1)) is None


def test_a_direct_judge_is_asked_for_one_token_with_its_alternatives() -> None:
    speaker = Speaker(likely(" 5", one=0.5), likely("1"))
    rating = rate(JudgeSection(style="direct"), speaker)
    assert rating.helpfulness == pytest.approx(0.0)
    assert rating.safety == -1.0
    for asked in speaker.asked:
        assert (asked["max_tokens"], asked["logprobs"], asked["top_logprobs"]) == (1, True, 20)
        assert "with the score alone" in asked["content"]
        assert "Score: N" not in asked["content"]


def test_a_direct_judge_without_logprobs_is_read() -> None:
    speaker = Speaker("4", "2")
    rating = rate(JudgeSection(style="direct"), speaker)
    assert (rating.helpfulness, rating.safety) == (0.5, -0.5)


def test_a_server_that_refuses_logprobs_is_asked_without_from_then_on() -> None:
    refusal = RequestFailedError([Outcome.INVALID_REQUEST], "no logprobs")
    speaker = Speaker(refusal, "4", "2")
    rating = rate(JudgeSection(style="direct"), speaker)
    assert (rating.helpfulness, rating.safety) == (0.5, -0.5)
    assert ["logprobs" in asked for asked in speaker.asked] == [True, False, False]


def test_the_judges_words_are_kept_if_wanted() -> None:
    assert rate(JudgeSection(), Speaker("Score: 5", "Score: 1")).said == ()
    rating = rate(JudgeSection(keep_text=True), Speaker("Good. Score: 5", "Bad. Score: 1"))
    assert rating.said == (("helpfulness", "Good. Score: 5"), ("safety", "Bad. Score: 1"))
    assert rating.reward(1, 1).said == rating.said
