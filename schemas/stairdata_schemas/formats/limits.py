"""How much of a file is read before it is refused: sizes that no honest file reaches, known before it is read.

Whoever wrote a file decides what it expands to: 34 KB of parquet can hold a value of a gigabyte. With these limits
any command stays under 1.5 GB. The environment variable STAIRDATA_READ_LIMITS multiplies all of them, for data that
is larger and trusted.
"""

from __future__ import annotations

import math
import os

from stairdata_schemas.errors import InputError, UsageError, quote

VARIABLE = "STAIRDATA_READ_LIMITS"
KIBIBYTE, MEBIBYTE = 2**10, 2**20

MANIFEST_BYTES = 16 * MEBIBYTE
"""Of a manifest.json: it lists a file in 150 bytes."""
CARD_BYTES = MEBIBYTE
"""Of a README.md."""
NOTE_BYTES = MEBIBYTE
"""Of any other small file of ours: a recipe, `origin.json`, a note in the cache."""
HUB_ANSWER_BYTES = 16 * MEBIBYTE
"""Of an answer of the Hub that is no file; a page of 1,000 paths has 300 KB."""
HUB_FILES = 100_000
"""Paths in a repository."""
HUB_ROWS_BYTES = 900 * MEBIBYTE
"""Of memory for the rows of a Hub dataset that are read at a time; `datasets` reads a whole row group."""

VALUE_BYTES = 16 * MEBIBYTE
"""Of one text in a row."""
ROW_BYTES = 32 * MEBIBYTE
"""Of one row as JSON or CSV."""
DOCUMENT_BYTES = 64 * MEBIBYTE
"""Of JSON that has to be read as one document; a longer list is read element by element."""
JSON_WEIGHT = 512 * MEBIBYTE
"""Of what JSON becomes in Python, as `json_weight` estimates it."""
TABLE_BYTES = 128 * MEBIBYTE
"""Of a table that is read whole: answers of reviewers, structured reasoning written by hand."""
TABLE_CELLS = 2_000_000

EXPANSION = 200
EXPANSION_FLOOR = 512 * MEBIBYTE
"""A file may become this large, or `EXPANSION` times what it has on disk if that is more; text packs 3 to 20 to 1."""

FOOTER_BYTES = 16 * MEBIBYTE
"""Of parquet's footer."""
FOOTER_FIELDS = 10_000
FOOTER_DEPTH = 64
PAGE_BYTES = 128 * MEBIBYTE
"""Of a page of parquet, decompressed: writers end a page after 1 MB, but only each 1,024 values."""
DICTIONARY_BYTES = 16 * MEBIBYTE
"""Of a dictionary page; writers give up a dictionary after 1 MB."""
PAGES = 1_000_000
ROW_GROUP_BYTES = 256 * MEBIBYTE
"""Of a row group in an artifact, decoded; `stairdata` ends one after 64 MB."""
NESTED_GROUP_BYTES = 512 * MEBIBYTE
"""Of the lists of a row group in any other file, decoded."""
VALUE_OVERHEAD = 16
"""Bytes that a value costs beside its content, also if it is null."""


class TooLargeError(InputError):
    """A file, or something in it, is over a limit.

    Attributes:
        what: where it is and how large, without the name of the file.
    """

    def __init__(self, name: object, what: str) -> None:
        self.what = what
        super().__init__(f"{name}: {what}; if you trust it, raise the limits with {VARIABLE}=2 (or more)")


def scaled(limit: int) -> int:
    """Return a limit as the environment has it.

    Raises:
        UsageError: STAIRDATA_READ_LIMITS is no positive number.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return limit
    try:
        factor = float(given)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise UsageError(f"{VARIABLE} is {quote(given)}; set it to a number such as 2, or unset it")
    return max(1, int(limit * factor))


def size(count: int) -> str:
    """Write a number of bytes for a person."""
    for unit, name in ((2**30, "GB"), (MEBIBYTE, "MB"), (KIBIBYTE, "KB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def check(count: int, limit: int, name: object, what: str) -> None:
    """Refuse what is over a limit.

    Args:
        count: bytes.
        limit: one of this module's, before it is scaled.
        name: the file, for the message.
        what: that has so many bytes, such as "row 3, field 'prompt'".

    Raises:
        TooLargeError: it is over the limit.
    """
    if count > scaled(limit):
        raise TooLargeError(name, f"{what}: {size(count)}, over the limit of {size(scaled(limit))}")


def largest_expansion(on_disk: int) -> int:
    """Return how many bytes a file of that size may become."""
    return max(scaled(EXPANSION_FLOOR), scaled(EXPANSION) * on_disk)


def json_weight(text: str) -> int:
    """Estimate the bytes that a JSON document takes in Python: an empty list of two characters takes 64."""
    signs = text.count(",") + text.count("[") + text.count("{") + text.count(":")
    return 2 * len(text) + 80 * signs


def check_json(text: str, name: object, what: str) -> None:
    """Refuse JSON that would take more memory than it looks.

    Raises:
        TooLargeError: its estimate is over `JSON_WEIGHT`.
    """
    if len(text) > scaled(JSON_WEIGHT) // 170:  # less can't reach it
        check(json_weight(text), JSON_WEIGHT, name, f"{what}, as values in memory")
