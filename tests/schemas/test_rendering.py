"""Counting tokens by parts is counting them whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata_schemas import rendering
from stairdata_schemas.grammar import TAGS


@pytest.fixture(scope="session")
def counter(tokenizer_folder: Path) -> tuple[rendering.TokenCounter, rendering.Tokenizer]:
    tokenizer = rendering.load_tokenizer(tokenizer_folder)
    return rendering.TokenCounter(tokenizer), tokenizer


@given(
    st.lists(
        st.sampled_from([*TAGS, "\n", "\n\n", " ", "Title: A:", "naïve 👩🏽‍🚀", "<|", "|>", "answer"]), max_size=12
    )
)
def test_parts_add_up(counter: tuple[rendering.TokenCounter, rendering.Tokenizer], parts: list[str]) -> None:
    count, tokenizer = counter
    text = "".join(parts)
    assert count(text) == len(rendering.encode(tokenizer, text))


def test_where_they_do_not_add_up_texts_are_counted_whole() -> None:
    """A tokenizer that marks the start of each text, as some SentencePiece models do."""

    class Marking:
        def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
            pieces = [text] if text in TAGS else ["start", *text.split()]
            return {"input_ids": list(range(len(pieces)))}

    count = rendering.TokenCounter(Marking())  # type: ignore[arg-type]
    text = f"one two{TAGS[0]}three"
    assert count(text) == 1 + len(text.split())
