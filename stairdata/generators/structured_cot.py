"""Kind `structured_cot`: reasoning in the step grammar, written by hand or by a teacher."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import jinja2
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from stairdata.generators.options import BuildOptions
from stairdata.generators.published_cot import build_published, is_published
from stairdata.generators.runner import (
    Done,
    Opened,
    Row,
    Unit,
    UnitFailedError,
    open_budget,
    run_units,
    table_of_outcomes,
    usage_of,
)
from stairdata.generators.sft import build_from_trees, takes_trees
from stairdata.generators.sources import BrokenRow, read_rows
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client
from stairdata.llm.session import identify, open_client
from stairdata.recipe import Recipe
from stairdata_schemas import grammar, identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, Refused, Report, begin_build
from stairdata_schemas.errors import GrammarError, InputError
from stairdata_schemas.kinds import TASKS, polars_schema
from stairdata_schemas.manifest import sha256_of_file

GENERATOR = "structured_cot/1"
TEMPLATE_VERSION = 1
BY_HAND = "hand-written"


class TeacherStep(BaseModel):
    """One step as the teacher writes it."""

    model_config = ConfigDict(extra="forbid")

    title: str
    body: str


class TeacherAnswer(BaseModel):
    """The JSON a teacher is held to."""

    model_config = ConfigDict(extra="forbid")

    steps: list[TeacherStep]
    output: str


def build_structured_cot(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Build a structured_cot artifact from trees, from a hand-written file, or by asking the recipe's teacher.

    Raises:
        InputError: the file can't be read.
        ServerError: the teacher can't be reached.
    """
    if takes_trees(recipe, options):
        return build_from_trees(recipe, options)
    if is_published(recipe):
        return build_published(recipe, options)
    return _from_file(recipe, options) if recipe.structured_cot.path else _from_teacher(recipe, options)


def _from_file(recipe: Recipe, options: BuildOptions) -> Artifact:
    path = recipe.structured_cot.path
    assert path is not None
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    plan = BuildPlan(
        "structured_cot",
        GENERATOR,
        {"source": BY_HAND, "limit": options.limit},
        inputs={"rows": sha256_of_file(path)},
        license=recipe.structured_cot.license,
    )
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        rows, refused = _read_by_hand(path.name, list(read_rows(path)))
        frame = pl.DataFrame(rows[: options.limit], schema=polars_schema("structured_cot"))
        report = Report(notes=["written by hand; no teacher model took part"])
        return build.finish([frame], refused, report, options.max_quarantine)


def _read_by_hand(name: str, raws: list[Row | BrokenRow]) -> tuple[list[Row], list[Refused]]:
    rows: dict[str, Row] = {}
    refused = []
    for number, raw in enumerate(raws, start=1):
        if isinstance(raw, BrokenRow):
            refused.append(Refused(name, number, raw.rule, raw.raw))
            continue
        try:
            row = _row_by_hand(raw)
            if row["prompt_id"] in rows:
                raise UnitFailedError("duplicate_prompt", "")
            rows[row["prompt_id"]] = row
        except UnitFailedError as error:
            refused.append(Refused(name, number, error.rule, json.dumps(raw, ensure_ascii=False, default=str)))
    return list(rows.values()), refused


def _row_by_hand(raw: Row) -> Row:
    prompt, task = raw.get("prompt"), raw.get("task")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UnitFailedError("prompt_missing", "")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UnitFailedError("not_unicode", "")
    if task not in TASKS:
        raise UnitFailedError("unknown_task", "")
    answer = _parse_answer(json.dumps({"steps": raw.get("steps"), "output": raw.get("output")}))
    return _row(prompt, task, answer) | {"teacher": BY_HAND}


def _row(prompt: str, task: str, answer: TeacherAnswer) -> Row:
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


def _parse_answer(text: str) -> TeacherAnswer:
    try:
        return TeacherAnswer.model_validate_json(text)
    except ValidationError as error:
        raise UnitFailedError("not_the_schema", text) from error


def _from_teacher(recipe: Recipe, options: BuildOptions) -> Artifact:
    section = recipe.structured_cot
    parent = options.parent("prompts")
    plan = BuildPlan(
        "structured_cot",
        GENERATOR,
        {
            "source": "teacher",
            "temperature": section.teacher.temperature,
            "max_tokens": section.teacher.max_tokens,
            "template": TEMPLATE_VERSION,
            "seed": recipe.seed,
            "limit": options.limit,
        },
        settings={"teacher": section.teacher.model_dump(mode="json")},
        parents=[parent.as_parent()],
        models=[identify(section.teacher, "teacher", needs_tokenizer=False)],
        seeds={"sampling": recipe.seed},
    )
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        rows = options.rows(parent, ["prompt_id", "prompt", "task", "reference_answer"])
        prompts = {row["prompt_id"]: row for row in rows}
        units = [Unit(key, number, row["prompt"]) for number, (key, row) in enumerate(prompts.items())]
        budget = open_budget(build, recipe, options)
        work = partial(_open_work, build, recipe, prompts, options, budget)
        result = run_units(build, units, work, budget, options, section.concurrency)
        options.tell(table_of_outcomes(result))
        usage = usage_of(result, budget, [build.plan.models[0].name])
        report = Report(result.outcomes, usage, details={"requests": result.requests})
        return build.finish(result.frames(), result.refused, report, options.max_quarantine)


@asynccontextmanager
async def _open_work(
    build: Build, recipe: Recipe, prompts: dict[str, Row], options: BuildOptions, budget: Budget
) -> AsyncIterator[Opened]:
    teacher = recipe.structured_cot.teacher
    async with open_client(teacher, build.work / "server.log", options.waiting, budget) as client:

        async def work(unit: Unit) -> Done:
            return await _ask(client, recipe, prompts[unit.key], build.plan.models[0].name)

        yield Opened(work, client.window.room, [client])


async def _ask(client: Client, recipe: Recipe, prompt: Row, teacher: str) -> Done:
    section = recipe.structured_cot.teacher
    generation = await client.chat(
        [{"role": "user", "content": _template(prompt["task"]).render(prompt)}],
        max_tokens=section.max_tokens,
        seed=identity.request_seed(recipe.seed, prompt["prompt_id"], 0),
        temperature=section.temperature,
        response_format=_response_format(),
    )
    said = generation.samples[0]
    if said.finish == "length":
        raise UnitFailedError("cut_at_length", said.text)
    row = _row(prompt["prompt"], prompt["task"], _parse_answer(said.text)) | {
        "teacher": teacher,
        "finish": said.finish,
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
    }
    return Done(row, {}, dict(Counter(map(str, generation.outcomes))))


def _response_format() -> dict[str, Any]:
    schema = TeacherAnswer.model_json_schema()
    return {
        "type": "json_schema",
        "json_schema": {"name": "structured_cot", "strict": True, "schema": schema},
    }


def _template(task: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata.generators"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model; values are never parsed as templates
    )
    return environment.get_template(f"teacher_{task}_v{TEMPLATE_VERSION}.jinja")
