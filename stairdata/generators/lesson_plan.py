"""Which build is meant, who teaches, what was tried before, and what the manifest says of it all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from pydantic import BaseModel

from stairdata.fingerprints import row_settings
from stairdata.generators.batch_actions import BATCH_ACTIONS
from stairdata.generators.classroom import Class
from stairdata.generators.inputs import Inputs
from stairdata.generators.options import BuildOptions
from stairdata.generators.quality import is_of_the_answer
from stairdata.generators.second_opinion import TEMPLATE_VERSION as JUDGE_TEMPLATE_VERSION
from stairdata.generators.teacher import LESSON_COLUMNS, Lesson, Templates
from stairdata.generators.unfinished import find_before
from stairdata.llm.session import identify
from stairdata.recipe import Recipe, Teacher
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import WORK, Build, BuildPlan, begin_build, find_finished, find_unfinished
from stairdata_schemas.errors import ArtifactError, RecipeError, UsageError, quote
from stairdata_schemas.files import write_atomic

KIND = "structured_cot"
GENERATOR = "structured_cot/2"
BATCHES = "batches"
TRIES = "tries.json"


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
        raise UsageError(f"--teachers {quote(','.join(names))}: a name stands there twice")
    if len(names) > 1 and section.judge is None:
        raise RecipeError("--teachers with several names needs structured_cot.judge: it keeps the better answer")
    unknown = [name for name in names if name not in section.teachers]
    if unknown and section.teacher.base_url is None:
        known = ", ".join(section.teachers) or "none"
        raise RecipeError(
            f"--teachers: no teacher {quote(unknown[0])} in structured_cot.teachers (there: {known}), and no server "
            "structured_cot.teacher.base_url that could have a model of that name"
        )
    return [section.teachers.get(name) or section.teacher.model_copy(update={"model": name}) for name in names]


def gather_class(recipe: Recipe, options: BuildOptions, inputs: Inputs) -> Class:
    """Find teachers, templates and prompts.

    Raises:
        RecipeError: no teacher, a template that is none, or two teachers without a judge.
        UsageError: options that don't go together.
    """
    teachers = choose_teachers(recipe, options.teachers)
    if options.batch is not None:
        _check_batch(options, teachers)
    models = [identify(teacher, "teacher", needs_tokenizer=False) for teacher in teachers]
    if recipe.structured_cot.judge is not None:
        models.append(identify(recipe.structured_cot.judge, "judge", needs_tokenizer=False))
    called = [model.name for model in models[: len(teachers)]]
    if len(set(called)) < len(called):  # of one model, with other settings or on other servers
        called = list(options.teachers)
    templates = Templates(recipe.structured_cot.templates)
    return Class(recipe, teachers, called, models, templates, inputs.of_kind("prompts"))


def _check_batch(options: BuildOptions, teachers: list[Teacher]) -> None:
    if options.batch not in BATCH_ACTIONS:
        raise UsageError(f"--batch {quote(options.batch)}: known are {', '.join(BATCH_ACTIONS)}")
    if any(teacher.base_url is None for teacher in teachers):
        raise RecipeError("--batch needs structured_cot.teacher.base_url, such as https://api.openai.com/v1")
    if options.limits.seconds is not None:
        raise UsageError("--max-seconds goes with asking at once; a batch takes as long as it takes")
    if options.fresh and options.batch != "submit":
        raise UsageError(f"--fresh starts over: it leaves nothing for --batch {options.batch}")


class Begun(NamedTuple):
    """A build, or the artifact where there is nothing to do, and what it takes over."""

    build: Build | Artifact
    earlier: Artifact | None
    """The finished artifact whose rows it takes over."""
    depth: int
    """How many artifacts it follows that tried the same prompts."""


def begin(pupils: Class, options: BuildOptions) -> Begun:
    """Find the build; with --retry-quarantined a finished one is followed by another that takes over its rows."""
    chain = _finished_before(pupils, options) if options.retry_quarantined else []
    earlier = chain[-1] if chain else None
    if earlier is not None and not _refused_of(earlier):
        options.tell(f"{earlier.reference} has no prompt in quarantine; there is nothing to try again")
        return Begun(earlier, None, len(chain))
    plan = _plan(pupils, options, earlier)
    if options.fresh:
        _check_nothing_under_way(plan, options)
    return Begun(begin_build(plan, options.root, options.version, fresh=options.fresh), earlier, len(chain))


def look_ahead(pupils: Class, options: BuildOptions) -> tuple[Artifact | Path | None, set[int] | None]:
    """Find what `begin` would find, without beginning.

    Returns:
        The artifact, or the folder of the unfinished build; and the ordinals of the prompts that --retry-quarantined
        asks again, None where nothing is finished yet.
    """
    chain = _finished_before(pupils, options) if options.retry_quarantined else []
    earlier = chain[-1] if chain else None
    there = find_before(KIND, lambda: _plan(pupils, options, earlier), options)
    if earlier is None:
        return there, None
    refused = set(_refused_of(earlier))
    return there if refused else earlier, refused


def _finished_before(pupils: Class, options: BuildOptions) -> list[Artifact]:
    """Return the finished artifact of a plan, and those that tried its refused prompts again, in order."""
    chain: list[Artifact] = []
    while (found := find_finished(_plan(pupils, options, chain[-1] if chain else None), options.root)) is not None:
        chain.append(found)
    return chain


def _check_nothing_under_way(plan: BuildPlan, options: BuildOptions) -> None:
    named = options.root / KIND / options.version if options.version else None
    begun = named or find_unfinished(plan, options.root)
    requests = _under_way(begun) if begun else 0
    if begun and requests:
        raise UsageError(
            f"--fresh would forget {requests} requests that {KIND}@{begun.name} has under way in batches; run "
            "`--batch cancel` first, then `--batch collect`"
        )


def _under_way(folder: Path) -> int:
    """Return how many requests a build has in batches."""
    batches = folder / WORK / BATCHES
    if not batches.is_dir():
        return 0
    from stairdata.llm.batch_ledger import Ledger

    return len(Ledger(batches).pending())


def under_way_elsewhere(own: Path) -> str:
    """Name builds in other folders that have requests under way: perhaps one of them is meant."""
    others = []
    for folder in sorted(own.parent.glob("*")):
        with contextlib.suppress(ArtifactError):  # a damaged ledger of another build is told where that is built
            if folder != own and (requests := _under_way(folder)):
                others.append(f"{KIND}@{folder.name} has {requests} requests under way")
    if not others:
        return ""
    return f" (but {', '.join(others)}: with another --limit, recipe, template or input, or with --retry-quarantined)"


class Tries(BaseModel):
    """How often a build tried again what it refused; kept beside its journal."""

    mark: str = ""
    """Which quarantine was looked at last."""
    round: int = 0
    failures: dict[int, str] = {}
    """The rule that each prompt broke that is tried again, by its ordinal."""
    rounds: dict[int, int] = {}
    """In which round each was tried last."""


def find_tries(begun: Begun, options: BuildOptions) -> Tries:
    """Return what is to be tried again, and begin a new round where a new quarantine was written."""
    build = begun.build
    assert isinstance(build, Build)
    path = build.work / TRIES
    known = read_tries(build.work)
    if not options.retry_quarantined:
        return known
    source = build if _refused_of(build) else begun.earlier
    if source is None:
        options.tell("nothing is in quarantine yet; all prompts are asked")
        return known
    mark = _mark(source)
    if mark != known.mark:
        failures = _refused_of(source)
        tried = known.rounds | dict.fromkeys(failures, known.round + 1)
        known = Tries(mark=mark, round=known.round + 1, failures=known.failures | failures, rounds=tried)
        write_atomic(path, known.model_dump_json())
    return known


def read_tries(work: Path) -> Tries:
    """Return what was tried again so far, out of a build's folder of work."""
    path = work / TRIES
    return Tries.model_validate_json(path.read_bytes()) if path.exists() else Tries()


def _mark(there: Build | Artifact) -> str:
    """Tell one writing of the quarantine from the next."""
    files = sorted((there.folder / "quarantine").glob("*.parquet"))
    return ",".join(f"{path.stat().st_mtime_ns}-{path.stat().st_ino}" for path in files)


def _plan(pupils: Class, options: BuildOptions, earlier: Artifact | None = None) -> BuildPlan:
    section, seed = pupils.recipe.structured_cot, pupils.recipe.seed
    configuration: dict[str, Any] = {
        **row_settings(section),
        "source": "teacher",
        "teachers": [
            {"name": model.name, "as": called} | row_settings(teacher)
            for model, teacher, called in zip(pupils.models, pupils.teachers, options.teachers or [None], strict=False)
        ],
        "templates": row_settings(section.templates) | pupils.templates.hashes,
        "gate": row_settings(section.gate),
        "seed": seed,
        "limit": options.limit,
    }
    if section.judge is not None:
        configuration["judge"] = row_settings(section.judge) | {"template": JUDGE_TEMPLATE_VERSION}
    parents = [pupils.prompts.as_parent()]
    if earlier is not None:
        configuration["retries"] = earlier.reference
        parents.append(earlier.as_parent())
    servers = {
        "teachers": [teacher.model_dump(mode="json") for teacher in pupils.teachers],
        "judge": section.judge.model_dump(mode="json") if section.judge else None,
        "batch": section.batch.model_dump(mode="json"),
    }
    return BuildPlan(
        KIND,
        GENERATOR,
        configuration,
        settings={"servers": servers},
        parents=parents,
        models=pupils.models,
        seeds={"sampling": seed},
    )


def _refused_of(there: Build | Artifact) -> dict[int, str]:
    """Return the rule that each refused prompt broke, by the prompt's ordinal."""
    folder = there.folder / "quarantine"
    if not folder.is_dir():
        return {}
    rows = pl.scan_parquet(folder / "*.parquet").filter(pl.col("source") == KIND).select("row", "rule").collect()
    return dict(rows.iter_rows())


def make_lessons(prompts: Artifact, options: BuildOptions, tries: Tries, depth: int) -> dict[str, Lesson]:
    """Read the prompts, and say of those that are tried again what was wrong."""
    lessons = {}
    for number, row in enumerate(options.rows(prompts, LESSON_COLUMNS)):
        rule = tries.failures.get(number)
        # each round and each following artifact asks with a seed of its own
        ask = 0 if rule is None else max(0, depth - 1) + tries.rounds[number]
        failure = rule if rule is not None and is_of_the_answer(rule) else None
        lessons[row["prompt_id"]] = Lesson(**row, failure=failure, ask=ask)
    return lessons
