"""Which characters a reader sees."""

from __future__ import annotations

import polars as pl
import pytest
import regex

from stairdata_schemas.grammar import is_grammatical
from stairdata_schemas.kinds import Prompts, json_schema
from stairdata_schemas.text.visible import FORMAT_CHARACTERS, VISIBLE, is_blank, without_invisible

NOTHING = [
    "",
    " \n\u3000",
    "\u00ad\u200b",
    "\ufeff",
    "\u2066\u2069",
    "\u2800",
    "\u3164\uffa0",
    "\0\x1b\x7f\x9f",
    "\U000e0041",
]
SOMETHING = ["x", "\u0600", "\u0301", "\u4e00", ".", "\ufffd", "\U0001f469\u200d\U0001f680", "\u200bx"]


@pytest.mark.parametrize(
    ("text", "expected"), [*((text, True) for text in NOTHING), *((text, False) for text in SOMETHING)]
)
def test_blank_texts_by_each_rule(text: str, expected: bool) -> None:
    assert is_blank(text) is expected
    assert (not pl.Series([text]).str.contains(VISIBLE).item()) is expected
    completion = (
        f"<|Reasoning_step|>\nTitle: A\n{text or ' '}\n<|/Reasoning_step|>\n\n<|Output|>\nFinal Answer:\nB\n<|/Output|>"
    )
    assert is_grammatical(completion) is not expected


def test_prompts_of_nothing_visible_are_no_rows() -> None:
    texts = [*NOTHING, *SOMETHING]
    frame = Prompts.sample(len(texts)).with_columns(prompt=pl.Series(texts))
    good, failures = Prompts.filter(frame, cast=True)
    assert sorted(good["prompt"]) == sorted(SOMETHING)
    assert failures.counts() == {"prompt|regex": len(NOTHING)}
    assert json_schema("prompts")["properties"]["prompt"]["pattern"] == r"\S"


def test_format_characters_are_those_of_unicode() -> None:
    by_property = regex.compile(r"[[\p{Cf}\p{DI}]--\p{Prepended_Concatenation_Mark}]", regex.V1)
    spelt_out = regex.compile(f"[{FORMAT_CHARACTERS}]")
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert spelt_out.findall(everything) == by_property.findall(everything)


def test_white_space_stays() -> None:
    assert without_invisible(" \t\r\n\x1c\x85\u2028\u3000a\u00adb\0") == " \t\r\n\x1c\x85\u2028\u3000ab"
