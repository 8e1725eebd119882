"""Kind `prompts`: rows from files and Hub datasets, checked, without duplicates."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import polars as pl

from stairdata.generators.options import BuildOptions
from stairdata.generators.sources import BrokenRow, Row, hub_license, hub_revision, read_hub, read_rows
from stairdata.recipe import PromptSource, Recipe
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, Refused, begin_build
from stairdata_schemas.errors import InputError, RecipeError
from stairdata_schemas.kinds import TASKS, polars_schema
from stairdata_schemas.licenses import strictest
from stairdata_schemas.manifest import sha256_of_file

GENERATOR = "prompts/1"
_TEXTS = ("prompt", "task", "source", "category", "reference_answer")
_COLUMNS = (*_TEXTS, "reference_is_safe")
_REQUIRED = ("prompt", "task")


class _Invalid(NamedTuple):
    rule: str
    field: str


def build_prompts(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Build a prompts artifact from the recipe's sources.

    Raises:
        RecipeError: no source.
        InputError: a source that can't be read, or lacks a column.
    """
    if not recipe.prompts.sources:
        raise RecipeError("prompts.sources is empty; give at least one {path: FILE} or {hub: DATASET}")
    pinned = [_pin(source) for source in recipe.prompts.sources]
    plan = _plan(pinned, recipe.seed, options.limit)
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        rows: list[Row] = []
        refused: list[Refused] = []
        for index, source in enumerate(pinned):
            rows += _read_source(source, random.Random(f"{recipe.seed}/{index}"), refused)  # noqa: S311
            options.progress("prompts", index + 1, len(pinned))
        unique = _without_duplicates(rows, refused)[: options.limit]
        frame = pl.DataFrame(unique, schema=polars_schema("prompts"))
        return build.finish([frame], refused, max_quarantine=options.max_quarantine)


def _pin(source: PromptSource) -> PromptSource:
    if source.hub is None:
        return source
    revision = hub_revision(source.hub, source.revision)
    return source.model_copy(
        update={"revision": revision, "license": source.license or hub_license(source.hub, revision)}
    )


def _plan(sources: list[PromptSource], seed: int, limit: int | None) -> BuildPlan:
    described = [source.model_dump(mode="json", exclude={"path", "license"}) for source in sources]
    for source, entry in zip(sources, described, strict=True):
        entry["file"] = source.path.name if source.path else None
    inputs = {f"{index}": _file_hash(source) for index, source in enumerate(sources) if source.path is not None}
    return BuildPlan(
        "prompts",
        GENERATOR,
        {"sources": described, "limit": limit, "seed": seed},
        inputs=inputs,
        settings={"licenses": [source.license for source in sources]},
        seeds={"sampling": seed},
        license=strictest(source.license for source in sources),
    )


def _file_hash(source: PromptSource) -> str:
    assert source.path is not None
    try:
        return sha256_of_file(source.path)
    except OSError as error:
        raise InputError(f"{source.path} can't be read: {error.strerror}") from error


def _source_name(source: PromptSource) -> str:
    return str(source.path) if source.path else str(source.hub)


def _raw_rows(source: PromptSource) -> Iterator[Row | BrokenRow]:
    if source.path is not None:
        return read_rows(source.path)
    assert source.hub is not None
    return read_hub(source.hub, source.revision, source.config, source.split)


def _read_source(source: PromptSource, rng: random.Random, refused: list[Refused]) -> list[Row]:
    """Read a source's sound rows, and a seeded sample of them where a count is set."""
    name = _source_name(source)
    rows: list[Row] = []
    number = 0
    for number, raw in enumerate(_raw_rows(source), start=1):
        if number <= source.skip:
            continue
        if isinstance(raw, BrokenRow):
            refused.append(Refused(name, number, raw.rule, raw.raw))
            continue
        _check_columns(raw, source, name, number)
        result = _prompt_row(raw, source)
        if isinstance(result, _Invalid):
            text = json.dumps(raw, ensure_ascii=False, default=str)
            refused.append(Refused(name, number, result.rule, text, result.field))
        else:
            rows.append(result | {"_origin": (name, number)})
    if number <= source.skip:
        raise InputError(f"{name} has no rows" + (f" after the {source.skip} skipped" if source.skip else ""))
    if source.count is None or source.count >= len(rows):
        return rows
    return [rows[index] for index in sorted(rng.sample(range(len(rows)), source.count))]


def _check_columns(raw: Row, source: PromptSource, name: str, number: int) -> None:
    """Check on the first row that the columns are there; later rows may lack a value."""
    if number > source.skip + 1:
        return
    for ours, theirs in column_names(source).items():
        if ours not in {*_REQUIRED, *source.columns}:
            continue
        if theirs not in raw and not (ours == "task" and source.task):
            hint = "set `task:` for the whole source, or " if ours == "task" else ""
            raise InputError(
                f"{name} has no column {theirs!r} (its columns: {', '.join(map(str, raw))}); "
                f"{hint}name the column that holds it: `columns: {{{ours}: NAME}}`"
            )


def column_names(source: PromptSource) -> dict[str, str]:
    """Return the source's name of each of our columns."""
    return {ours: ours for ours in _COLUMNS} | {str(ours): theirs for ours, theirs in source.columns.items()}


def _prompt_row(raw: Row, source: PromptSource) -> Row | _Invalid:
    names = column_names(source)
    row: Row = {ours: raw.get(names[ours]) for ours in _COLUMNS}
    row["task"] = source.task or row["task"]
    fallback = source.path.name if source.path else source.hub
    row["source"] = source.name or row["source"] or fallback
    invalid = _first_fault(row)
    if invalid is not None:
        return invalid
    return {"prompt_id": identity.prompt_id(row["prompt"]), **row}


def _first_fault(row: Row) -> _Invalid | None:
    for field in _REQUIRED:
        if row[field] is None:
            return _Invalid("missing_value", field)
    for field in _TEXTS:
        if not isinstance(row[field], str | None):
            return _Invalid("wrong_type", field)
    row["reference_is_safe"] = _as_bool(row["reference_is_safe"])
    if row["reference_is_safe"] not in (True, False, None):
        return _Invalid("wrong_type", "reference_is_safe")
    return _text_fault(row)


def _text_fault(row: Row) -> _Invalid | None:
    if not row["prompt"].strip():
        return _Invalid("blank", "prompt")
    if row["task"] not in TASKS:
        return _Invalid("unknown_task", "task")
    for field in _TEXTS:
        if any("\ud800" <= character <= "\udfff" for character in row[field] or ""):
            return _Invalid("not_unicode", field)  # a lone surrogate out of a JSON escape: no file can hold it
    return None


def _as_bool(value: Any) -> Any:
    """Read the words that CSV has for booleans."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _without_duplicates(rows: list[Row], refused: list[Refused]) -> list[Row]:
    seen: set[str] = set()
    unique = []
    for row in rows:
        name, number = row.pop("_origin")
        if row["prompt_id"] in seen:
            refused.append(Refused(name, number, "duplicate_prompt", row["prompt"], "prompt"))
        else:
            seen.add(row["prompt_id"])
            unique.append(row)
    return unique
