"""Harmless twins of unsafe prompts, written by a teacher: of the same form, for training against over-refusal."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jinja2

from stairdata.generators.prompts.asking import PromptWorkload, ask_about
from stairdata.generators.prompts.filters import Rejection
from stairdata.generators.prompts.twin_rules import read_twin
from stairdata.llm.budget import Budget
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.recipe import Recipe, TwinsSection
from stairdata.runs.executors.executor import Execution
from stairdata.runs.options import BuildOptions
from stairdata.runs.row_sampling import share_of
from stairdata.runs.runner import RunResult
from stairdata.runs.templates import packaged_source, source_of
from stairdata.runs.units import UnitResult
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.building import Build
from stairdata_schemas.errors import RecipeError, quote
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.templating.sandbox import BoundedTemplate

TEMPLATE_VERSION = 1
JOURNAL = "twins.jsonl"
CALL = 1
"""Ordinal of the question among those about a prompt; its task is asked for before."""


class TwinRefusedError(RequestFailedError):
    """A teacher that answered, and never with a twin."""

    def __init__(self, fault: Rejection, outcomes: list[Outcome]) -> None:
        self._rule = fault.rule
        super().__init__(outcomes, fault.detail)

    @property
    def rule(self) -> str:
        return self._rule


class TwinTemplate:
    """What a teacher of twins is asked, in our words or in those of the recipe's file.

    A prompt is never parsed as a template, and a file's template runs in a sandbox, under limits of time and size.

    Raises:
        RecipeError: a file that can't be read, or is no template of the known variables.
    """

    def __init__(self, path: Path | None) -> None:
        self.source = packaged_source(__package__, f"twin_v{TEMPLATE_VERSION}") if path is None else source_of(path)
        form = packaged_source(__package__, f"twin_form_v{TEMPLATE_VERSION}")
        self.hashes = {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in (("twin", self.source), ("form", form))
        }
        # so that a slip in a file shows before anything is asked
        for category in ("category", None):
            ask_for_twin(self.source, {"prompt": "prompt", "task": "safety", "category": category})


def ask_for_twin(source: str, row: Row) -> str:
    """Return what a teacher is asked about a row.

    Args:
        source: of the template.
        row: of ours.

    Raises:
        RecipeError: the template can't be used for it.
    """
    known = {name: row[name] for name in ("prompt", "task", "category")}
    try:
        question = _compiled(source).render(sum(len(value or "") for value in known.values()), **known)
        question.encode()
    except Exception as error:  # whatever a template of the user's may raise
        raise RecipeError(
            f"prompts.twins.template can't be used: {quote(str(error))}; it may use {', '.join(known)}"
        ) from error
    return question + packaged_source(__package__, f"twin_form_v{TEMPLATE_VERSION}").rstrip("\n")


@lru_cache(4)
def _compiled(source: str) -> BoundedTemplate:
    return BoundedTemplate(source, undefined=jinja2.StrictUndefined, autoescape=False)


@dataclass(frozen=True)
class TwinWorkload(PromptWorkload):
    """Has a twin written of the row of each unit."""

    section: TwinsSection
    template: str
    role = "twins"

    async def answer(self, pool: EndpointPool, row: Row) -> UnitResult:
        answer = await self.ask(
            pool,
            row,
            CALL,
            ask_for_twin(self.template, row),
            lambda generation: read_twin(generation, row["prompt"], self.section.max_similarity),
        )
        if isinstance(answer.found, Rejection):
            ended = [Outcome(outcome) for outcome in Counter(answer.outcomes).elements()]
            raise TwinRefusedError(answer.found, ended)
        return UnitResult(twin_row(row, answer.found), {}, answer.outcomes, usage=answer.used)


def twin_row(row: Row, twin: str) -> Row:
    """Return the row of a twin."""
    return dict.fromkeys(polars_schema("prompts")) | {
        "prompt_id": identity.prompt_id(twin),
        "prompt": twin,
        "task": "helpfulness",
        "source": f"twin of {row['source']}",
        "category": row["category"],
        "twin_of": row["prompt_id"],
    }


def rows_for_twins(rows: Sequence[Row], recipe: Recipe) -> list[Row]:
    """Return the rows that shall have a twin, in their order; a task that is not known yet counts as wanted."""
    section = recipe.prompts.twins
    if section is None:
        return []
    wanted = [row for row in rows if row["task"] in {*section.tasks, None}]
    if section.count is None or section.count >= len(wanted):
        return wanted
    ids = sorted((row["prompt_id"] for row in wanted), key=lambda key: (share_of(recipe.seed, "twins", key), key))
    chosen = {*ids[: section.count]}
    return [row for row in wanted if row["prompt_id"] in chosen]


def write_twins(
    build: Build,
    rows: Sequence[Row],
    recipe: Recipe,
    options: BuildOptions,
    budget: Budget,
    urls: tuple[str, ...] = (),
) -> RunResult:
    """Have twins written; what is finished is journaled, and the next run of the build goes on from there.

    Args:
        build: where what is finished is kept.
        rows: rows of ours that shall have one.
        recipe: section `prompts.twins`.
        options: progress.
        budget: of the build.
        urls: of the teacher's servers, in place of the recipe's one.

    Returns:
        The run, whose frames hold the twins, before any filter but the rules for twins.

    Raises:
        ServerError: the teacher can't be reached.
        BudgetError: a limit is reached; what is finished is kept.
    """
    section = recipe.prompts.twins
    assert section is not None
    workload = TwinWorkload(recipe, build.work, section.teacher, section, TwinTemplate(section.template).source)
    execution = Execution(endpoints=urls)
    return ask_about(build, rows, workload, options, budget, journal_name=JOURNAL, execution=execution)
