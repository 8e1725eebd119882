"""The reward R and the judges that need no model.

R = (k1 + k2) S + k1 S H = S (k2 + k1 (1 + H)), and the bracket is at least k2 > 0 for every H >= -1. So the three
properties hold for every k1 > 0 and k2 > 0; the recipe's k1 >= 1 and k2 <= 1 are the paper's narrower choice. At
S = 0 R is 0 whatever H is: such an answer stands between the safe and the unsafe ones, and H does not order it.
"""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.search.refusal import is_short_refusal
from stairdata.search.reward import combine, rate, reference_rating, rule_safety, word_f1
from stairdata_schemas.grammar import Step, render

UNIT = st.floats(-1, 1)
SAFE = st.floats(1e-6, 1)
K1 = st.floats(1, 1e6)
K2 = st.floats(1e-6, 1)
LOW_AND_HIGH = st.tuples(st.floats(-1, 0.999), st.floats(1e-3, 1)).map(
    lambda pair: (pair[0], pair[0] + pair[1] * (1 - pair[0]))
)
COT = render([Step("Risk:", "I am sorry for them.")], "Here is how.")


@given(UNIT, SAFE, UNIT, SAFE, K1, K2)
def test_any_safe_answer_beats_any_unsafe_one(
    helpful: float, safe: float, helpful_too: float, unsafe: float, k1: float, k2: float
) -> None:
    assert combine(helpful, safe, k1, k2) > 0 > combine(helpful_too, -unsafe, k1, k2)


@given(LOW_AND_HIGH, SAFE, K1, K2)
def test_helpfulness_raises_the_reward_where_safe_and_lowers_it_where_unsafe(
    helpfulness: tuple[float, float], safety: float, k1: float, k2: float
) -> None:
    low, high = helpfulness
    assert combine(high, safety, k1, k2) > combine(low, safety, k1, k2)
    assert combine(high, -safety, k1, k2) < combine(low, -safety, k1, k2)


@given(UNIT, LOW_AND_HIGH, st.floats(1, 100), st.floats(1e-3, 1))
def test_safety_orders_where_helpfulness_is_constant(
    helpfulness: float, safety: tuple[float, float], k1: float, k2: float
) -> None:
    low, high = safety
    assert combine(helpfulness, high, k1, k2) > combine(helpfulness, low, k1, k2)


@given(UNIT, K1, K2)
def test_neither_safe_nor_unsafe_is_zero_whatever_the_helpfulness(helpfulness: float, k1: float, k2: float) -> None:
    assert combine(helpfulness, 0.0, k1, k2) == 0


def test_the_published_reward_and_its_corners() -> None:
    assert [combine(h, s) for h in (-1, 1) for s in (-1, 1)] == [-1, 1, -3, 3]
    assert rate(0.5, -0.5)[:3] == (0.5, -0.5, -1.25)


@pytest.mark.parametrize(
    ("text", "task", "expected"),
    [
        ("I'm sorry, I can't help.", "safety", 1.0),
        ("SORRY", "safety", 1.0),
        ("Sure, here it is.", "safety", -1.0),
        ("", "safety", -1.0),
        ("Sure, here it is.", "helpfulness", 1.0),
        ("sorry" + "x" * 345, "safety", 1.0),
        ("sorry" + "x" * 346, "safety", -1.0),
        (COT, "safety", -1.0),  # the word stands in the reasoning, not in the answer
        (render([Step("Risk:", "x" * 400)], "I am sorry."), "safety", 1.0),
        ("<|Reasoning_step|>\nTitle: A:\nb\n<|/Reasoning_step|>\n\n sorry, cut off", "safety", 1.0),
    ],
)
def test_safety_by_rule(text: str, task: str, expected: float) -> None:
    assert rule_safety(text, task) == expected


def test_the_limit_of_a_refusal_counts_code_points_of_the_stripped_answer() -> None:
    assert is_short_refusal("sorry" + "👩" * 345 + "\n\n")
    assert not is_short_refusal("sorry" + "👩" * 346)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "The cat, sat!", 1.0),
        ("the cat", "a dog", 0.0),
        ("the the the", "the", 0.5),
        ("cat", "the cat sat", 0.5),
        ("", "", 0.0),
        ("...", "!!!", 0.0),
        ("東京 は", "東京 が", 2 / 3),
    ],
)
def test_word_f1(answer: str, reference: str, expected: float) -> None:
    assert word_f1(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("near", "far", "reference"),
    [
        ("卵を七分間ゆでて、すぐ冷水に入れます。", "車で山へ行きます。", "卵を七分間ゆでて、冷水に入れます。"),
        ("ต้มไข่เจ็ดนาทีแล้วแช่น้ำเย็น", "ขับรถไปภูเขาพรุ่งนี้", "ต้มไข่เจ็ดนาทีแล้วใส่ในน้ำเย็น"),
        ("ကြက်ဥကို ခုနစ်မိနစ်ပြုတ်ပါ", "မနက်ဖြန်တောင်သို့သွားမည်", "ကြက်ဥကိုခုနစ်မိနစ်ပြုတ်ပါ"),
        ("முட்டையை ஏழு நிமிடம் வேக வைக்கவும்", "மட்டயி எழா நமுடீம் வோகி வாக்குவம்", "முட்டையை ஏழு நிமிடம் வேக வை"),
        ("x is -5", "x is 5", "x is \u22125"),
    ],
    ids=["Japanese", "Thai", "Burmese", "Tamil with other vowels", "signs"],
)
def test_nearly_equal_answers_of_any_script_are_told_from_others(near: str, far: str, reference: str) -> None:
    assert word_f1(near, reference) > 0.74
    assert word_f1(far, reference) < 0.7


@given(st.text(), st.text())
def test_word_f1_is_a_symmetric_share(answer: str, reference: str) -> None:
    assert 0 <= word_f1(answer, reference) <= 1
    assert word_f1(answer, reference) == word_f1(reference, answer)


def test_rating_by_reference() -> None:
    assert reference_rating(COT, "helpfulness", "here is HOW") == (1.0, 1.0)
    assert reference_rating(COT, "safety", "here is how") == (1.0, -1.0)
    assert reference_rating(COT, "safety", None) == (-1.0, -1.0)
    assert reference_rating("I am sorry.", "safety", None) == (-1.0, 1.0)
    assert reference_rating(COT, "helpfulness", "nothing shared") == (-1.0, 1.0)


def test_a_refusal_of_a_helpful_prompt_can_be_worth_nothing() -> None:
    rated = partial(reference_rating, penalise_over_refusal=True)
    refusal = "I am sorry, an egg needs six minutes."
    assert reference_rating(refusal, "helpfulness", refusal) == (1.0, 1.0)
    assert rated(refusal, "helpfulness", refusal) == (-1.0, 1.0)
    assert rated(COT, "helpfulness", "here is HOW") == (1.0, 1.0)
    assert rated("I am sorry.", "safety", "I am sorry.") == (1.0, 1.0), "on a safety prompt it is what is wanted"


@given(st.text(), st.sampled_from(["safety", "helpfulness"]), st.none() | st.text())
def test_ratings_stay_in_range(text: str, task: str, reference: str | None) -> None:
    helpfulness, safety = reference_rating(text, task, reference)
    assert -1 <= helpfulness <= 1
    assert safety in (-1.0, 1.0)
