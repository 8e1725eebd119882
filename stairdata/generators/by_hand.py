"""Rows of kind `structured_cot` that people wrote: a file, checked."""

from __future__ import annotations

import json

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from stairdata.fingerprints import row_settings
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import Row, UnitFailedError
from stairdata.generators.sources import BrokenRow, read_rows
from stairdata.recipe import Recipe
from stairdata_schemas import grammar, identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, Refused, Report, begin_build
from stairdata_schemas.errors import GrammarError, InputError
from stairdata_schemas.kinds import TASKS, polars_schema
from stairdata_schemas.manifest import sha256_of_file

GENERATOR = "structured_cot/1"
BY_HAND = "hand-written"


class WrittenStep(BaseModel):
    """One step as it is written, by a person or a teacher."""

    model_config = ConfigDict(extra="forbid")

    title: str
    body: str


class WrittenAnswer(BaseModel):
    """An answer as it is written; a teacher is held to its JSON Schema."""

    model_config = ConfigDict(extra="forbid")

    steps: list[WrittenStep]
    output: str


def build_from_file(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Build a structured_cot artifact from the recipe's file.

    Raises:
        InputError: the file can't be read.
    """
    path = recipe.structured_cot.path
    assert path is not None
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    plan = BuildPlan(
        "structured_cot",
        GENERATOR,
        {**row_settings(recipe.structured_cot), "source": BY_HAND, "limit": options.limit},
        inputs={"rows": sha256_of_file(path)},
        license=recipe.structured_cot.license,
    )
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        rows, refused = _read(path.name, list(read_rows(path)))
        frame = pl.DataFrame(rows[: options.limit], schema=polars_schema("structured_cot"))
        report = Report(notes=["written by hand; no teacher model took part"])
        return build.finish([frame], refused, report, options.max_quarantine)


def make_row(prompt: str, task: str, answer: WrittenAnswer) -> Row:
    """Render an answer in the step grammar.

    Raises:
        UnitFailedError: it breaks the grammar.
    """
    steps = [grammar.Step(step.title, step.body) for step in answer.steps]
    try:
        completion = grammar.render(steps, answer.output)
    except GrammarError as error:
        raise UnitFailedError(f"grammar_{error.rule}", answer.model_dump_json()) from error
    return {
        "prompt_id": identity.prompt_id(prompt),
        "prompt": prompt,
        "task": task,
        "steps": [{"title": step.title, "body": step.body} for step in steps],
        "output": answer.output,
        "completion": completion,
    }


def parse_answer(text: str) -> WrittenAnswer:
    """Read an answer's JSON.

    Raises:
        UnitFailedError: it is not of the schema.
    """
    try:
        return WrittenAnswer.model_validate_json(text)
    except ValidationError as error:
        raise UnitFailedError("not_the_schema", text) from error


def _read(name: str, raws: list[Row | BrokenRow]) -> tuple[list[Row], list[Refused]]:
    rows: dict[str, Row] = {}
    refused = []
    for number, raw in enumerate(raws, start=1):
        if isinstance(raw, BrokenRow):
            refused.append(Refused(name, number, raw.rule, raw.raw))
            continue
        try:
            row = _row(raw)
            if row["prompt_id"] in rows:
                raise UnitFailedError("duplicate_prompt", "")
            rows[row["prompt_id"]] = row
        except UnitFailedError as error:
            refused.append(Refused(name, number, error.rule, json.dumps(raw, ensure_ascii=False, default=str)))
    return list(rows.values()), refused


def _row(raw: Row) -> Row:
    prompt, task = raw.get("prompt"), raw.get("task")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UnitFailedError("prompt_missing", "")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UnitFailedError("not_unicode", "")
    if task not in TASKS:
        raise UnitFailedError("unknown_task", "")
    answer = parse_answer(json.dumps({"steps": raw.get("steps"), "output": raw.get("output")}))
    return make_row(prompt, task, answer) | {"teacher": BY_HAND}
