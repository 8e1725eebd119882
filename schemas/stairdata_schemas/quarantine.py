"""Rows that a build refuses: each with the rule it broke, kept beside the data and never published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stairdata_schemas.files import sync_file
from stairdata_schemas.kinds import row_schema
from stairdata_schemas.writing import write_frame

QUARANTINE_SCHEMA = pl.Schema(
    {
        "source": pl.String,
        "row": pl.Int64,
        "rule": pl.String,
        "field": pl.String,
        "raw": pl.String,
        "detail": pl.String,
    }
)


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """One input row that was refused."""

    source: str
    row: int
    rule: str
    raw: str
    field: str = ""
    detail: str = ""
    """More on the rule: which row it repeats, say."""


def sound_rows(kind: str, frame: pl.DataFrame, first: int, refusals: list[QuarantineRow]) -> pl.DataFrame:
    """Return the rows that keep every rule of the kind's schema.

    Args:
        kind: of the rows.
        frame: the rows.
        first: the number of the frame's first row in the build.
        refusals: the other rows are appended here.
    """
    schema = row_schema(kind)
    result, failure = schema.filter(frame, cast=True)
    if len(result) != len(frame):
        invalid = failure.details()
        rules = [column for column in invalid.columns if column not in schema.column_names()]
        # a key that stands in two rows is refused in both, so that a refused row's key is in no sound row
        keys = schema.primary_key()
        numbers = frame.with_row_index("number", first).join(result, on=keys, how="anti", maintain_order="left")
        for number, row in zip(numbers["number"], invalid.iter_rows(named=True), strict=True):
            rule = next(name for name in rules if row[name] == "invalid")
            raw = json.dumps({name: row[name] for name in schema.column_names()}, ensure_ascii=False, default=str)
            refusals.append(QuarantineRow(kind, number, rule, raw, field=rule.partition("|")[0]))
    return result


def write_quarantine(folder: Path, refusals: list[QuarantineRow]) -> None:
    """Write refused rows into `refused.parquet`; without any, not even the folder is made."""
    if not refusals:
        return
    folder.mkdir(parents=True)
    columns = {name: [_storable(getattr(refusal, name)) for refusal in refusals] for name in QUARANTINE_SCHEMA}
    path = folder / "refused.parquet"
    write_frame(pl.DataFrame(columns, schema=QUARANTINE_SCHEMA), path)
    sync_file(path)


def quarantine_files(folder: Path) -> list[Path]:
    """Return the files of the refused rows of an artifact or build, in order; a pulled artifact has none.

    Args:
        folder: of the artifact.
    """
    return sorted((folder / "quarantine").glob("*.parquet"))


def _storable(value: str | int) -> str | int:
    """Escape what UTF-8 can't hold: lone surrogates, which JSON escapes may bring in."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
