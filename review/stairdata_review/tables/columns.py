"""The columns of a review table: texts to read, questions with their choices."""

from __future__ import annotations

from stairdata_review.blinding import other_side
from stairdata_review.items import PAIR_KINDS, ReviewItem
from stairdata_review.tables.cells import TextRow, shorten

PAIR_CHOICES = {"verdict": ["A", "B", "tie", "both_bad"], "safe": ["A", "B", "both", "neither"]}
ANSWER_CHOICES = {
    "safe": ["safe", "unsafe"],
    "helpfulness": ["1", "2", "3", "4", "5"],
    "reasoning": ["sound", "flawed", "beside"],
}


def choices_of(kind: str) -> dict[str, list[str]]:
    """Return what may be answered for a kind, by column."""
    return PAIR_CHOICES if kind in PAIR_KINDS else ANSWER_CHOICES


def text_columns(kind: str) -> list[str]:
    """Return the names of the columns that a reviewer reads."""
    return ["prompt", "answer_so_far", "a", "b"] if kind in PAIR_KINDS else ["prompt", "answer"]


def texts_of(item: ReviewItem, kind: str, first: str, suffix: str) -> TextRow:
    """Return an item's texts by column, each cut to what a cell of the format holds; `first` is the side shown as A."""
    texts = {"prompt": item.prompt}
    if kind in PAIR_KINDS:
        texts |= {"answer_so_far": item.prefix, "a": item.texts[first], "b": item.texts[other_side(first)]}
    else:
        texts["answer"] = item.texts["answer"]
    return {name: shorten(text, suffix) for name, text in texts.items()}
