from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stairdata_schemas import errors
from stairdata_schemas.errors import StairDataError, quote


def tree(error: type[StairDataError]) -> list[type[StairDataError]]:
    return [error, *(below for child in error.__subclasses__() for below in tree(child))]


OURS = [error for error in tree(StairDataError) if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error", OURS)
def test_wrong_usage_is_status_2_and_all_else_1(error: type[StairDataError]) -> None:
    assert error.exit_status == (2 if issubclass(error, errors.UsageError) else 1)


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    assert [error.__name__ for error in OURS if error.__name__ not in errors.__doc__] == []


def test_grammar_error_says_rule_place_and_text() -> None:
    error = errors.GrammarError("nested_tag", 3, "abc\x1b[2Jdef")
    assert (error.rule, error.position) == ("nested_tag", 3)
    assert str(error) == r"the completion breaks the rule 'nested_tag' at character 3: '\x1b[2Jdef'"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain text, ünïcödé and 漢字", "'plain text, ünïcödé and 漢字'"),
        ("\x1b]0;owned\x07", r"'\x1b]0;owned\x07'"),
        ("\x9b31m", r"'\x9b31m'"),
        ("line\nbreak\r\n\ttab", r"'line\nbreak\r\n\ttab'"),
        ("abc\u202edcba\u2066x\u2069", r"'abc\u202edcba\u2066x\u2069'"),
        ("zero\u200bwidth\ufeff", r"'zero\u200bwidth\ufeff'"),
        ("\ud800", r"'\ud800'"),
        ("tag\U000e0041", r"'tag\U000e0041'"),
        ("", "''"),
        (b"bytes\n", r"'b'bytes\n''"),
        (None, "'None'"),
    ],
)
def test_quote_shows_what_cannot_be_seen(raw: object, shown: str) -> None:
    assert quote(raw) == shown


def test_quote_cuts_at_80_characters_of_the_source() -> None:
    assert quote("x" * 80) == f"'{'x' * 80}'"
    assert quote("x" * 81) == f"'{'x' * 80}…'"
    assert quote("\n" * 81) == "'" + r"\n" * 80 + "…'"
    assert quote("abcdef", limit=3) == "'abc…'"


@given(st.text(alphabet=st.characters()))
@example("one\u2028two\u2029three\x85four")
@settings(max_examples=300)
def test_a_quote_is_one_printable_line(text: str) -> None:
    shown = quote(text)
    assert len(shown.splitlines()) == 1
    shown.encode("utf-8")
    assert all(character.isprintable() or character.isspace() for character in shown)
