"""Rows of kind `structured_cot` that people wrote: a file, checked."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from stairdata.generators.prompts.files import BrokenRow, read_rows
from stairdata.generators.structured_cot.answer import make_row, parse_answer
from stairdata.recipe import Recipe
from stairdata.runs.build import build_as_told
from stairdata.runs.options import BuildOptions
from stairdata.runs.units import UnitFailedError
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.errors import InputError
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.formats.limits import TABLE_BYTES, check
from stairdata_schemas.kinds import TASKS, polars_schema
from stairdata_schemas.manifest import sha256_of_file
from stairdata_schemas.quarantine import QuarantineRow
from stairdata_schemas.text.visible import is_blank

GENERATOR = "structured_cot/1"
BY_HAND = "hand-written"
ROW_COST = 512
"""Bytes that a row takes up in memory beside its texts, about."""


def build_from_file(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Build a structured_cot artifact from the recipe's file.

    Raises:
        InputError: the file can't be read.
    """
    path = recipe.structured_cot.path
    assert path is not None
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    plan = BuildPlan(
        "structured_cot",
        GENERATOR,
        {**counted_settings(recipe.structured_cot), "source": BY_HAND, "limit": options.limit},
        inputs={"rows": sha256_of_file(path)},
        license=recipe.structured_cot.license,
    )

    def content(_: Build) -> BuildContent:
        rows, refused = _read(path.name, _all(path))
        frame = pl.DataFrame(rows[: options.limit], schema=polars_schema("structured_cot"))
        return BuildContent([frame], refused, Report(notes=["written by hand; no teacher model took part"]))

    return build_as_told(plan, content, options)


def _all(path: Path) -> list[Row | BrokenRow]:
    """Read all rows, if they are few enough to be held: somebody wrote them by hand."""
    found, size = [], 0
    for raw in read_rows(path):
        size += ROW_COST + (len(raw.raw) if isinstance(raw, BrokenRow) else len(json.dumps(raw, default=str)))
        check(size, TABLE_BYTES, path, "rows written by hand")
        found.append(raw)
    return found


def _read(name: str, raws: list[Row | BrokenRow]) -> tuple[list[Row], list[QuarantineRow]]:
    rows: dict[str, Row] = {}
    refused = []
    for number, raw in enumerate(raws, start=1):
        if isinstance(raw, BrokenRow):
            refused.append(QuarantineRow(name, number, raw.rule, raw.raw, detail=raw.detail))
            continue
        try:
            row = _row(raw)
            if row["prompt_id"] in rows:
                raise UnitFailedError("duplicate_prompt", "")
            rows[row["prompt_id"]] = row
        except UnitFailedError as error:
            refused.append(QuarantineRow(name, number, error.rule, json.dumps(raw, ensure_ascii=False, default=str)))
    return list(rows.values()), refused


def _row(raw: Row) -> Row:
    prompt, task = raw.get("prompt"), raw.get("task")
    if not isinstance(prompt, str) or is_blank(prompt):
        raise UnitFailedError("prompt_missing", "")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UnitFailedError("not_unicode", "")
    if task not in TASKS:
        raise UnitFailedError("unknown_task", "")
    try:
        written = json.dumps({"steps": raw.get("steps"), "output": raw.get("output")})
    except (TypeError, ValueError) as error:  # bytes, times or decimals out of a parquet file
        raise UnitFailedError("not_the_schema", "") from error
    answer = parse_answer(written)
    return make_row(prompt, task, answer) | {"teacher": BY_HAND}
