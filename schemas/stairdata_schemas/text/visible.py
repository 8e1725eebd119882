"""Which characters a reader sees."""

from __future__ import annotations

import re

FORMAT_CHARACTERS = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Ranges of the characters that only steer how others are shown: Default_Ignorable_Code_Point and Cf in Unicode.

Without the few of Cf that are drawn (Prepended_Concatenation_Mark, such as the Arabic number sign). Spelt out because
Python's `re`, Rust's regular expressions (polars) and JSON Schema have no notation for properties in common.
"""
VISIBLE = rf"[^\s\x00-\x1f\x7f-\x9f\u2800{FORMAT_CHARACTERS}]"
"""A regular expression for one visible character; U+2800 is the Braille pattern without dots."""
# control characters that are white space part words, so they stay
_NOT_SHOWN = re.compile(rf"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f{FORMAT_CHARACTERS}]+")
_VISIBLE = re.compile(VISIBLE)


def is_blank(text: str) -> bool:
    """Return whether a text has nothing that a reader would see."""
    return _VISIBLE.search(text) is None


def without_invisible(text: str) -> str:
    """Return a text without format and control characters; white space stays."""
    return _NOT_SHOWN.sub("", text)
