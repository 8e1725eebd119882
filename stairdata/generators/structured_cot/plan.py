"""Who teaches, and which build is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from stairdata.generators.structured_cot.from_hub import is_published
from stairdata.generators.structured_cot.from_trees import takes_trees
from stairdata.generators.structured_cot.preference_judge import TEMPLATE_VERSION as JUDGE_TEMPLATE_VERSION
from stairdata.generators.structured_cot.requests import TeacherPrompt, TeacherTemplates, check_policies
from stairdata.llm.session import identify
from stairdata.recipe import Recipe, Teacher
from stairdata.runs.batching.options import check_batch, check_nothing_under_way
from stairdata.runs.build import finished_or_error
from stairdata.runs.executors.checks import at_endpoints, roles_at_endpoints
from stairdata.runs.executors.executor import HERE, Execution, check_unbatched
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BatchOptions, BuildOptions
from stairdata.runs.shards.shard import with_shard
from stairdata.runs.unfinished import find_before
from stairdata.runs.units import Unit
from stairdata_schemas.artifacts import Artifact, scan_files
from stairdata_schemas.building import Build, BuildPlan, begin_build, find_finished
from stairdata_schemas.errors import RecipeError, UsageError, quote
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.quarantine import quarantine_files

KIND = "structured_cot"
GENERATOR = "structured_cot/3"
RETRYING = ", or with --retry-quarantined"
"""How else a build may differ from one that has batches."""


def source_of(recipe: Recipe, inputs: Inputs) -> Literal["trees", "hub", "file", "teachers"]:
    """Return where the rows come from."""
    if takes_trees(recipe, inputs):
        return "trees"
    if is_published(recipe):
        return "hub"
    return "teachers" if recipe.structured_cot.path is None else "file"


def choose_teachers(recipe: Recipe, names: Sequence[str]) -> list[Teacher]:
    """Return the teachers that `--teachers` names, or the recipe's one.

    Raises:
        UsageError: a name twice.
        RecipeError: a name that is neither a teacher nor can be a model, or several without a judge.
    """
    section = recipe.structured_cot
    if not names:
        return [section.teacher]
    if len(set(names)) < len(names):
        raise UsageError(f"--teachers {quote(','.join(names))}: a name is given twice")
    if len(names) > 1 and section.judge is None:
        raise RecipeError("--teachers with several names needs structured_cot.judge: it keeps the better answer")
    unknown = [name for name in names if name not in section.teachers]
    if unknown and section.teacher.base_url is None:
        known = ", ".join(section.teachers) or "none"
        raise RecipeError(
            f"--teachers: no teacher {quote(unknown[0])} in structured_cot.teachers (there: {known}), and no "
            "structured_cot.teacher.base_url that could serve a model of that name"
        )
    return [section.teachers.get(name) or section.teacher.model_copy(update={"model": name}) for name in names]


@dataclass(frozen=True, slots=True)
class TeacherOptions:
    """What `build structured-cot` is told about asking teachers."""

    teachers: tuple[str, ...] = ()
    """Names of teachers, in place of the recipe's one."""
    batch: str | None = None
    """submit, status, collect or cancel: ask through the Batch API. None asks live."""
    batch_files: Path | None = None
    """With `batch`: folder in which batches are files for `vllm run-batch`."""
    retry_quarantined: bool = False
    """Ask again about what was refused, and say why."""


ASK_ONE = TeacherOptions()


@dataclass(frozen=True, slots=True)
class TeacherPanel:
    """The teachers of a build, and in which words they are asked."""

    recipe: Recipe
    teachers: tuple[Teacher, ...]
    row_names: tuple[str, ...]
    """What rows call the teachers: the model's name, or the recipe's for the teacher where two have one model."""
    models: tuple[ModelIdentity, ...]
    """The teachers', in their order; the judge's comes last."""
    templates: TeacherTemplates
    prompts: Artifact
    named: tuple[str, ...] = ()
    """The names of `--teachers`."""

    @property
    def takes_several_requests(self) -> bool:
        """Whether a row may take more than one request."""
        return len(self.teachers) > 1 or self.recipe.structured_cot.judge is not None

    @property
    def price_names(self) -> list[str]:
        """Names of all models, for their prices."""
        judge = self.recipe.structured_cot.judge
        return [teacher.name for teacher in self.teachers] + ([judge.name] if judge else [])


@dataclass(frozen=True, slots=True)
class TeacherJob:
    """What a panel is asked in one build."""

    panel: TeacherPanel
    prompts: dict[str, TeacherPrompt]
    """By prompt_id, in the order of the input."""
    wanted: frozenset[int] | None = None
    """The ordinals of those that are to be answered; None is all."""

    def units(self) -> list[Unit]:
        """Return the prompts as units of work."""
        units = (
            Unit(key, number, prompt.prompt, prompt._asdict())
            for number, (key, prompt) in enumerate(self.prompts.items())
        )
        return [unit for unit in units if self.wanted is None or unit.number in self.wanted]


def make_panel(
    recipe: Recipe, prompts: Artifact, options: BuildOptions, asking: TeacherOptions, execution: Execution = HERE
) -> TeacherPanel:
    """Find teachers and templates.

    Args:
        recipe: section `structured_cot`.
        prompts: that the teachers are asked about.
        options: where and from what.
        asking: which teachers, live or in batches.
        execution: where the servers of teachers and judge are.

    Raises:
        RecipeError: no teacher, a template that can't be used, or two teachers without a judge.
        UsageError: options that can't be combined.
    """
    recipe = roles_at_endpoints(recipe, KIND, execution)
    teachers = _at_endpoints(choose_teachers(recipe, asking.teachers), execution)
    if asking.batch is not None:
        check_unbatched(execution)
        _check_batch(asking, options, teachers)
    models = [identify(teacher, "teacher", needs_tokenizer=False) for teacher in teachers]
    if recipe.structured_cot.judge is not None:
        models.append(identify(recipe.structured_cot.judge, "judge", needs_tokenizer=False))
    names = tuple(model.name for model in models[: len(teachers)])
    if len(set(names)) < len(names):  # of one model, with other settings or on other servers
        names = asking.teachers
    templates = TeacherTemplates(recipe.structured_cot.templates, recipe.structured_cot.policies)
    check_policies(recipe.structured_cot.policies, prompts)
    return TeacherPanel(recipe, tuple(teachers), names, tuple(models), templates, prompts, asking.teachers)


def _at_endpoints(teachers: list[Teacher], execution: Execution) -> list[Teacher]:
    if execution.endpoints and len({teacher.base_url for teacher in teachers}) > 1:
        raise UsageError(
            "--endpoints are servers of all teachers, and those of --teachers are at several; leave --endpoints out, "
            "or name teachers of one base_url"
        )
    role = "structured_cot.teacher"
    return [at_endpoints(teacher, execution, role, needs_tokenizer=False) for teacher in teachers]


def _check_batch(asking: TeacherOptions, options: BuildOptions, teachers: list[Teacher]) -> None:
    check_batch(options, BatchOptions(asking.batch or "submit"))
    if asking.batch_files is None and any(teacher.base_url is None for teacher in teachers):
        raise RecipeError("--batch needs structured_cot.teacher.base_url, such as https://api.openai.com/v1")


class BuildStart(NamedTuple):
    """A build, or the artifact where there is nothing to do, and what it takes over."""

    build: Build | Artifact
    earlier: Artifact | None
    """The finished artifact whose rows it takes over."""
    depth: int
    """How many artifacts it follows that tried the same prompts."""


def begin(panel: TeacherPanel, options: BuildOptions, *, retry: bool) -> BuildStart:
    """Find the build; with --retry-quarantined a finished one is followed by another that takes over its rows."""
    chain = _finished_before(panel, options) if retry else []
    earlier = chain[-1] if chain else None
    if earlier is not None and not refused_of(earlier):
        options.tell(f"{earlier.reference} has no prompt in quarantine; there is nothing to try again")
        return BuildStart(earlier, None, len(chain))
    plan = _plan(panel, options, earlier)
    if options.only_finished:
        return BuildStart(finished_or_error(plan, options), earlier, len(chain))
    if options.fresh:
        check_nothing_under_way(plan, options)
    return BuildStart(begin_build(plan, options.root, options.version, fresh=options.fresh), earlier, len(chain))


def look_ahead(
    panel: TeacherPanel, options: BuildOptions, *, retry: bool
) -> tuple[Artifact | Path | None, frozenset[int] | None]:
    """Find what `begin` would find, without beginning.

    Returns:
        The artifact, or the folder of the unfinished build; and the ordinals of the prompts that --retry-quarantined
        asks again, None where nothing is finished yet.
    """
    chain = _finished_before(panel, options) if retry else []
    earlier = chain[-1] if chain else None
    there = find_before(KIND, lambda: _plan(panel, options, earlier), options)
    if earlier is None:
        return there, None
    refused = frozenset(refused_of(earlier))
    return there if refused else earlier, refused


def _finished_before(panel: TeacherPanel, options: BuildOptions) -> list[Artifact]:
    """Return the finished artifact of a plan, and those that tried its refused prompts again, in order."""
    chain: list[Artifact] = []
    while (found := find_finished(_plan(panel, options, chain[-1] if chain else None), options.root)) is not None:
        chain.append(found)
    return chain


def _plan(panel: TeacherPanel, options: BuildOptions, earlier: Artifact | None = None) -> BuildPlan:
    section, seed = panel.recipe.structured_cot, panel.recipe.seed
    configuration: dict[str, Any] = {
        **counted_settings(section),
        "source": "teacher",
        "teachers": [
            {"name": model.name, "as": called} | counted_settings(teacher)
            for model, teacher, called in zip(panel.models, panel.teachers, panel.named or [None], strict=False)
        ],
        "templates": counted_settings(section.templates) | panel.templates.hashes,
        "gate": counted_settings(section.gate),
        "seed": seed,
        "limit": options.limit,
    }
    if section.judge is not None:
        configuration["judge"] = counted_settings(section.judge) | {"template": JUDGE_TEMPLATE_VERSION}
    parents = [panel.prompts.as_parent()]
    if earlier is not None:
        configuration["retries"] = earlier.reference
        parents.append(earlier.as_parent())
    servers = {
        "teachers": [teacher.model_dump(mode="json") for teacher in panel.teachers],
        "judge": section.judge.model_dump(mode="json") if section.judge else None,
        "batch": section.batch.model_dump(mode="json"),
    }
    plan = BuildPlan(
        KIND,
        GENERATOR,
        configuration,
        settings={"servers": servers},
        parents=parents,
        models=list(panel.models),
        seeds={"sampling": seed},
    )
    return with_shard(plan, options.shard)


def refused_of(there: Build | Artifact) -> dict[int, str]:
    """Return the rule that each refused prompt broke, by the prompt's ordinal."""
    files = quarantine_files(there.folder)
    if not files:
        return {}
    rows = scan_files(files).filter(pl.col("source") == KIND).select("row", "rule").collect()
    return dict(rows.iter_rows())
