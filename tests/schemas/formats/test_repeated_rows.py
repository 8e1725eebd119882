"""Keys that occur in several rows are found, also where hashes of different keys are equal."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata_schemas.formats.repeated_rows import repeated_keys

ROWS = st.lists(st.tuples(st.sampled_from(["", "a", "b", "ab", "é"]), st.integers(0, 3)), max_size=40)


def plainly(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.group_by("name", "number").len().filter(pl.col("len") > 1).sort("name", "number")


def as_frame(rows: list[tuple[str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"name": pl.String, "number": pl.Int64}, orient="row")


@given(ROWS)
def test_they_are_those_of_a_plain_group_by(rows: list[tuple[str, int]]) -> None:
    frame = as_frame(rows)
    found = repeated_keys(frame.with_columns(other=pl.lit(1)).lazy(), ["name", "number"])
    assert found.equals(plainly(frame))


@given(ROWS)
def test_equal_hashes_of_different_keys_count_for_nothing(rows: list[tuple[str, int]]) -> None:
    whole, frame = pl.Expr.hash, as_frame(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Expr, "hash", lambda expression, seed: whole(expression, seed) % 2)
        assert repeated_keys(frame.lazy(), ["name", "number"]).equals(plainly(frame))
