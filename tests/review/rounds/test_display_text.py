"""Text for a browser, and spans back from there."""

from __future__ import annotations

import html
import re
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stairdata_review.rounds.display_text import TEXT_LIMIT, DisplayText, show, show_steps

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
STEP = "<|Reasoning_step|>\nTitle: Look <b>\nbody & more\n<|/Reasoning_step|>"
OUTPUT = "\n\n<|Output|>\nFinal Answer:\nno 😀\n<|/Output|>"


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def on_page(shown: DisplayText, start: int, end: int) -> tuple[int, int]:
    """Where a page shows code points of the text, counted as a browser does."""
    touched = [place for place, piece in enumerate(shown.pieces) if piece.start < end and piece.end > start]
    ends = [0, *accumulate(piece.units for piece in shown.pieces)]
    return ends[touched[0]], ends[touched[-1] + 1]


@given(TEXTS)
@example("<script>alert(1)</script>&lt;&#x1F600;\x00\x1b\u202e\r\n\r😀👨‍👩‍👧")
def test_what_is_pushed_holds_no_markup_and_reads_as_the_text(text: str) -> None:
    shown = show(text, TEXT_LIMIT)
    assert not set("<>") & set(shown.html)
    assert re.sub(r"&(amp|lt|gt|#\d+);", "", shown.html).count("&") == 0
    assert max(shown.html, default="") <= "\uffff"
    page = html.unescape(shown.html)
    assert units(page) == sum(piece.units for piece in shown.pieces)
    assert units(page) <= len(shown.html), "the server takes no span that ends behind the text"
    if text.isprintable():
        assert page == text


@given(TEXTS, st.data())
def test_spans_come_back_to_the_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    shown = show(text, TEXT_LIMIT)
    if start == end:
        assert shown.span(start, start) is None
        return
    found = shown.span(*on_page(shown, start, end))
    assert found is not None
    # a line break of two characters is one on a page
    assert found[0] in {start, start - 1}
    assert found[1] in {end, end + 1}
    if "\r" not in text:
        assert found == (start, end)


@given(TEXTS, st.integers(0, 200), st.integers(0, 200))
def test_any_span_is_inside_the_text_or_nothing(text: str, start: int, end: int) -> None:
    found = show(text, 100).span(start, end)
    assert found is None or 0 <= found[0] < found[1] <= len(text)


@given(st.text("a<&😀\x00", min_size=200, max_size=400))
def test_a_long_text_is_cut_between_characters_and_says_so(text: str) -> None:
    shown = show(text, 150)
    if not shown.left_out:
        assert len(shown.html) <= 150
        return
    assert len(shown.html) <= 150
    assert f"[… {shown.left_out:,} more characters" in shown.html
    kept = text[: len(text) - shown.left_out]
    assert shown.html.startswith(show(kept, 10**6).html)
    assert shown.span(0, units(html.unescape(shown.html))) in {(0, len(kept)), None}


def test_the_tags_of_the_grammar_are_hidden_and_spans_know_it() -> None:
    text = STEP + OUTPUT
    shown = show_steps(text, TEXT_LIMIT, from_start=True)
    page = html.unescape(shown.html)
    assert page == "Look <b>\nbody & more\n\nFinal Answer:\nno 😀"
    for word in ("Look <b>", "body & more", "no", "😀"):
        start = units(page[: page.index(word)])
        found = shown.span(start, start + units(word))
        assert found is not None
        assert text[slice(*found)] == word
    whole = shown.span(0, units(page))
    assert whole == (text.index("Look"), text.index("😀") + 1)


@pytest.mark.parametrize("text", [STEP.replace("Title: ", ""), STEP + "x", OUTPUT, "plain", "<|Output|>", ""])
def test_what_breaks_the_grammar_is_shown_as_it_is(text: str) -> None:
    assert html.unescape(show_steps(text, TEXT_LIMIT, from_start=True).html) == text


def test_a_later_step_begins_without_its_empty_line() -> None:
    assert show_steps(OUTPUT, TEXT_LIMIT, from_start=False).html == "Final Answer:\nno &#128512;"
