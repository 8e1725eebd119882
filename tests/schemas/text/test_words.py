"""The words of a text, in every script."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata_schemas.text.words import comparable, spaced, words, words_and_signs

ENGLISH = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], include_characters="\t\n"))


@given(ENGLISH)
def test_words_of_ascii_letters_are_runs_of_them(text: str) -> None:
    unsigned = re.sub(r"-(?=\d)", " ", text)
    assert words(unsigned) == re.findall(r"\w+", unsigned.lower())
    assert spaced(unsigned) == re.sub(r"[\W_]+", " ", unsigned.lower()).strip()


@given(ENGLISH)
def test_words_do_not_depend_on_other_scripts_beside_them(text: str) -> None:
    assert words(text + " \u00e9") == [*words(text), "\u00e9"]


@given(st.text())
def test_what_stands_between_words_makes_no_difference(text: str) -> None:
    plain = text.replace("_", " ")
    assert words(spaced(plain)) == words(plain)
    assert spaced(spaced(plain)) == spaced(plain)
    assert comparable(comparable(text)) == comparable(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't x_y 3.14", ["don", "t", "x_y", "3", "14"]),
        ("-5, (-7), \u22128; 2020-05-01, x-3", ["-5", "-7", "-8", "2020", "05", "01", "x", "3"]),
        ("泡茶2杯。AIモデルは速い", ["泡", "茶", "2", "杯", "ai", "モデル", "は", "速", "い"]),
        ("データ・サイエンス ﾓﾃﾞﾙ", ["データ", "サイエンス", "モデル"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("ไทย ก 12", ["ไท", "ทย", "ก", "12"]),
        ("ລາວ", ["ລາ", "າວ"]),
        ("ខ្មែរ", ["ខ្មែ", "មែរ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
        ("e\u0301 \u00c9", ["\u00e9", "\u00e9"]),
        ("\u0301 \u20dd !", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert [*map(comparable, expected)] == words(text)


@pytest.mark.parametrize(
    "hidden", ["\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff", "\ufe0f", "\u202e", "\U000e0041", "\u3164", "\0"]
)
def test_invisible_characters_make_no_difference(hidden: str) -> None:
    text = hidden.join("How to boil 2 eggs -3 如何")
    assert words(text) == words("How to boil 2 eggs -3 如何")
    assert spaced(text) == spaced("How to boil 2 eggs -3 如何")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 5", "x = -5"),
        ("x < 5", "x > 5"),
        ("a + b", "a - b"),
        ("7*2", "7 / 2"),
        ("$5", "\u20ac5"),
        ("5%", "5"),
        ("1.5", "1 5"),
        ("x != 5", "x = 5"),
        ("2^3", "2 3"),
        ("f(-x)", "f(x)"),
    ],
)
def test_signs_of_formulas_tell_texts_apart(one: str, other: str) -> None:
    assert words_and_signs(one) != words_and_signs(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("- **First**, a well-known item.", "* first a well known item"),
        ("x = \u22125", "X=-5!"),
        ("It is safe - or is it?", "It is safe, or is it"),
        ("yes/no | maybe~", "Yes no maybe"),
    ],
)
def test_marks_of_prose_do_not(one: str, other: str) -> None:
    assert words_and_signs(one) == words_and_signs(other)
