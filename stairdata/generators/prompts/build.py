"""Kind `prompts`: rows from files and Hub datasets, checked, filtered, sampled, without duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from stairdata.generators.prompts.decontamination import EvaluationSet, evaluation_sets, files_hash, read_contamination
from stairdata.generators.prompts.files import look_through
from stairdata.generators.prompts.filters import BY_DESIGN, Filter, Rejection, filters_of, first_verdict
from stairdata.generators.prompts.mapping import PinnedSource, SourcePrompt, pin, sound_rows
from stairdata.generators.prompts.near_duplicates import NearDuplicates
from stairdata.recipe import Endpoint, PromptSource, Recipe
from stairdata.runs.build import build_as_told
from stairdata.runs.options import BuildOptions
from stairdata.runs.row_sampling import BottomSample
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.errors import RecipeError, UsageError
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.licenses import strictest
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.quarantine import QuarantineRow

if TYPE_CHECKING:  # what asks models takes half a second to import, and prompts that have their tasks need none
    from stairdata.llm.budget import Budget
    from stairdata.runs.executors.executor import Execution
    from stairdata.runs.runner import RunResult

GENERATOR = "prompts/3"
TEACHER = "prompts.twins.teacher"


class PromptInputs(NamedTuple):
    """What a recipe comes down to."""

    sources: list[PinnedSource]
    evaluations: list[EvaluationSet]


class PromptSelection(NamedTuple):
    """What came of the sources."""

    rows: list[Row]
    refused: list[QuarantineRow]
    taken: dict[int, int]
    """Rows of each source, by its number."""
    notes: tuple[str, ...] = ()
    """What was left out of rows or folders, for the manifest."""


def build_prompts(recipe: Recipe, options: BuildOptions, execution: Execution | None = None) -> Artifact:
    """Build a prompts artifact from the recipe's sources.

    Args:
        recipe: section `prompts`.
        options: where and how much.
        execution: where the judge of tasks is asked, and the servers of the teacher of twins; default: in this process,
            at the recipe's URLs.

    Raises:
        RecipeError: no source, or one that is named wrongly.
        InputError: a source that can't be read, or lacks a column.
        ServerError: the judge of tasks or the teacher of twins can't be reached.
        UsageError: `execution` for a model that the recipe does not name.
    """
    if execution is not None:
        recipe = _at_endpoints(recipe, execution)
    given = _given(recipe, options)

    def content(build: Build) -> BuildContent:
        selector = _select(given, recipe, options)
        chosen, report = selector.selection(options.limit), Report()
        if recipe.prompts.twins is not None or any(row["task"] is None for row in chosen.rows):
            chosen, report = _after_asking(build, selector, recipe, options, execution)
        report.notes += [*chosen.notes, *_notes(given, chosen, options.limit)]
        report.details |= _details(given, chosen)
        frame = pl.DataFrame(chosen.rows, schema=polars_schema("prompts"))
        return BuildContent([frame], chosen.refused, report, BY_DESIGN)

    def check() -> None:
        if execution is not None:
            from stairdata.runs.executors.checks import check_execution

            judge = recipe.prompts.task_judge
            check_execution([judge] if judge else [], execution, recipe, "prompts")

    return build_as_told(_plan(given, recipe, options.limit), content, options, check)


class TwinQuestion(NamedTuple):
    """What a teacher of twins would be asked about a prompt."""

    prompt: str
    question: str


class PromptQuestions(NamedTuple):
    """What a build would ask of models."""

    without_task: list[str]
    """The prompts that the judge of tasks would be asked about."""
    for_twins: list[TwinQuestion]
    """Those without a task included."""


def questions_of(recipe: Recipe, options: BuildOptions) -> PromptQuestions:
    """Return what a build would ask; nothing is asked or written."""
    from stairdata.generators.prompts.twins import TwinTemplate, ask_for_twin, rows_for_twins
    from stairdata.llm.session import identify

    section = recipe.prompts.twins
    if section is not None and section.teacher.path is None:  # which would be hashed
        identify(section.teacher, TEACHER, needs_tokenizer=False)
    source = TwinTemplate(section.template).source if section else ""
    rows = _select(_given(recipe, options), recipe, options).selection(options.limit).rows
    for_twins = [TwinQuestion(row["prompt"], ask_for_twin(source, row)) for row in rows_for_twins(rows, recipe)]
    return PromptQuestions([row["prompt"] for row in rows if row["task"] is None], for_twins)


def _at_endpoints(recipe: Recipe, execution: Execution) -> Recipe:
    """Return the recipe with the models that are asked at their endpoints."""
    from stairdata.runs.executors.checks import at_endpoints, roles_at_endpoints

    section = recipe.prompts
    if section.task_judge is not None:
        judge = at_endpoints(section.task_judge, execution, "prompts.task_judge", needs_tokenizer=False)
        recipe = recipe.model_copy(update={"prompts": section.model_copy(update={"task_judge": judge})})
    elif execution.endpoints or execution.executor == "ray":
        raise UsageError(
            "--endpoints, --executor and --address go with a judge of tasks; give prompts.task_judge, or leave them "
            "out; servers of the teacher of twins are --endpoints twins=URL,URL"
        )
    return roles_at_endpoints(recipe, "prompts", execution)


def _given(recipe: Recipe, options: BuildOptions) -> PromptInputs:
    section = recipe.prompts
    if not section.sources:
        raise RecipeError("prompts.sources is empty; give at least one {path: FILE} or {hub: DATASET}")
    sources = [pin(source, number) for number, source in enumerate(section.sources)]
    return PromptInputs(sources, evaluation_sets(section.decontaminate, options.root))


def _plan(given: PromptInputs, recipe: Recipe, limit: int | None) -> BuildPlan:
    sources = [pinned.source for pinned in given.sources]
    inputs = {
        f"{pinned.number}": files_hash(pinned.source.path, pinned) for pinned in given.sources if pinned.source.path
    }
    evaluations = [
        {"name": each.name, "sha256": each.sha256} | ({"read_as": each.read_as} if each.read_as else {})
        for each in given.evaluations
    ]
    configuration = {
        "sources": [_described(pinned, inputs) for pinned in given.sources],
        "limit": limit,
        "seed": recipe.seed,
        "filters": _filters_described(recipe),
        "decontaminate": evaluations,
    }
    return BuildPlan(
        "prompts",
        GENERATOR,
        configuration | _judge_described(recipe) | _twins_described(recipe),
        inputs=inputs | {f"decontaminate/{number}": each.sha256 for number, each in enumerate(given.evaluations)},
        models=_models(recipe),
        settings={"licenses": [source.license for source in sources]},
        seeds={"sampling": recipe.seed},
        license=strictest(source.license for source in sources),
    )


def _described(pinned: PinnedSource, inputs: dict[str, str]) -> dict[str, Any]:
    source: PromptSource = pinned.source
    return counted_settings(source) | {
        "hub": source.hub,
        "revision": source.revision,
        "file": source.path.name if source.path else None,
        "sha256": inputs.get(f"{pinned.number}"),
        "mapped_as": pinned.known.hub if pinned.known else None,
    }


def _filters_described(recipe: Recipe) -> dict[str, Any]:
    section = recipe.prompts
    described = counted_settings(section)
    if section.max_tokens is not None and (tokenizer := recipe.tokenizer_or_default(section.tokenizer)) is not None:
        from stairdata_schemas.rendering import load_tokenizer, tokenizer_hash

        described["tokenizer"] = tokenizer_hash(load_tokenizer(tokenizer))
    return described


def _models(recipe: Recipe) -> list[ModelIdentity]:
    section = recipe.prompts
    asked: dict[str, Endpoint] = {}
    if section.task_judge is not None:
        asked["prompts.task_judge"] = section.task_judge
    if section.twins is not None:
        asked[TEACHER] = section.twins.teacher
    if not asked:
        return []
    from stairdata.llm.session import identify

    return [identify(endpoint, role, needs_tokenizer=False) for role, endpoint in asked.items()]


def _judge_described(recipe: Recipe) -> dict[str, Any]:
    judge = recipe.prompts.task_judge
    if judge is None:
        return {}
    from stairdata.generators.prompts.task_labels import TEMPLATE_VERSION

    return {"task_judge": counted_settings(judge) | {"template": TEMPLATE_VERSION}}


def _twins_described(recipe: Recipe) -> dict[str, Any]:
    section = recipe.prompts.twins
    if section is None:
        return {}
    from stairdata.generators.prompts.twins import TwinTemplate

    return {"twins": counted_settings(section) | {"template": TwinTemplate(section.template).hashes}}


def _select(given: PromptInputs, recipe: Recipe, options: BuildOptions) -> _PromptSelector:
    """Read the sources and keep what the recipe wants of them."""
    selector = _PromptSelector(recipe, given)
    for pinned in given.sources:
        selector.take(pinned)
        options.progress("prompts", pinned.number + 1, len(given.sources))
    for note in selector.notes:
        options.tell(note)
    return selector


class _PromptSelector:
    """Rows taken so far, and the reasons against the others."""

    def __init__(self, recipe: Recipe, given: PromptInputs) -> None:
        section = recipe.prompts
        self._recipe = recipe
        self._filters = filters_of(recipe, read_contamination(given.evaluations, section.contamination))
        self._near = NearDuplicates(section.near_duplicates) if section.near_duplicates else None
        self._labels: dict[str, str] = {}
        self._may_resemble: set[str] = set()
        self._may_repeat = self._near is not None or len(given.sources) > 1
        self.rows: list[Row] = []
        self.refused: list[QuarantineRow] = []
        self.taken: dict[int, int] = {}
        self.notes: list[str] = []

    def selection(self, limit: int | None) -> PromptSelection:
        """Return what was taken, or the beginning of it."""
        return PromptSelection(self.rows[:limit], self.refused, self.taken, tuple(self.notes))

    def add_twin(self, twin: Row) -> Rejection | None:
        """Remember a twin that passes the filters and repeats nothing that was taken before; else say why not."""
        key, prompt, of = twin["prompt_id"], twin["prompt"], twin["twin_of"]
        label = self.twin_label(of)
        fault = Rejection("duplicate_prompt", f"repeats {self._labels[key]}") if key in self._labels else None
        fault = fault or first_verdict(self._filters, prompt)
        if fault is None and of not in self._may_resemble:  # whose twin it is may have the form of many others
            fault = self._near_fault(label, prompt)
        if fault is None:
            self._labels[key] = label
        return fault

    def twin_label(self, prompt_id: str) -> str:
        """Return what messages call the twin of a prompt that was taken."""
        return f"the twin of {self._labels[prompt_id]}"

    def take(self, pinned: PinnedSource) -> None:
        """Take what is wanted of a source: all, or a sample of the size asked for; in the source's order."""
        self.notes += _left_out_files(pinned)
        judged = self._recipe.prompts.task_judge is not None
        left_out: Counter[str] = Counter()
        found = sound_rows(pinned, self.refused, judged=judged, left_out=left_out)
        count = pinned.source.count
        if count is None:
            kept = list(self._admitted(found, pinned, self._filters))
        else:
            sample = self._sampled(found, count + (count // 2 + 100 if self._may_repeat else 0))
            admitted = self._admitted(sample, pinned, [])
            kept = [each for each, _ in zip(admitted, range(count), strict=False)]
        kept.sort(key=lambda each: each.position)
        self.taken[pinned.number] = len(kept)
        self.notes += [
            f"{_shown(pinned)}: column {column} was left out of {count} rows, since it holds something else than in "
            f"prompts; if it should be taken, name it, `columns: {{{column}: NAME}}`"
            for column, count in left_out.items()
        ]
        self.rows += [each.row for each in kept]

    def _sampled(self, rows: Iterable[SourcePrompt], size: int) -> Iterable[SourcePrompt]:
        """Sample prompts that pass the filters, with some to spare for those that repeat others."""
        sample: BottomSample[SourcePrompt] = BottomSample(size, self._recipe.seed)
        for found in rows:
            key = found.row["prompt_id"]
            if key in sample:
                self._refuse_duplicate(found, sample[key].label)
            elif sample.would_take(key) and self._passes(found, self._filters):
                sample.add(key, found)
        return sample

    def _admitted(
        self, rows: Iterable[SourcePrompt], pinned: PinnedSource, filters: list[Filter]
    ) -> Iterator[SourcePrompt]:
        """Yield rows that pass the filters and repeat nothing that was taken before."""
        for found in rows:
            key = found.row["prompt_id"]
            if key in self._labels:
                self._refuse_duplicate(found, self._labels[key])
            elif self._passes(found, filters) and not self._is_near(found, pinned):
                self._labels[key] = found.label
                if pinned.source.near_duplicates is False:
                    self._may_resemble.add(key)
                yield found

    def _passes(self, found: SourcePrompt, filters: list[Filter]) -> bool:
        verdict = first_verdict(filters, found.row["prompt"])
        if verdict is not None:
            self.refused.append(found.refused(verdict.rule, verdict.detail))
        return verdict is None

    def _is_near(self, found: SourcePrompt, pinned: PinnedSource) -> bool:
        if pinned.source.near_duplicates is False:
            return False
        fault = self._near_fault(found.label, found.row["prompt"])
        if fault is not None:
            self.refused.append(found.refused(*fault))
        return fault is not None

    def _near_fault(self, label: str, prompt: str) -> Rejection | None:
        alike = self._near.find_or_add(label, prompt) if self._near is not None else None
        return alike and Rejection("near_duplicate", f"repeats {alike.label} (similarity {alike.similarity:.2f})")

    def _refuse_duplicate(self, found: SourcePrompt, label: str) -> None:
        self.refused.append(found.refused("duplicate_prompt", f"repeats {label}"))


def _left_out_files(pinned: PinnedSource) -> list[str]:
    """Say which files of a folder were not read, and why."""
    folder = pinned.source.path
    if folder is None or not folder.is_dir() or pinned.known is not None:
        return []
    left_out = look_through(folder).left_out
    return [f"{folder.name}: left out {', '.join(left_out)}"] if left_out else []


def _after_asking(
    build: Build, selector: _PromptSelector, recipe: Recipe, options: BuildOptions, execution: Execution | None
) -> tuple[PromptSelection, Report]:
    """Have models label rows without a task and write twins, within one budget."""
    from stairdata.runs.runner import join_results, open_budget, table_of_outcomes, usage_of

    chosen, runs = selector.selection(options.limit), []
    details: dict[str, Any] = {}
    budget = open_budget(build, recipe, options)
    if any(row["task"] is None for row in chosen.rows):
        chosen, run = _labelled(build, chosen, recipe, options, budget, execution)
        runs.append(run)
    if recipe.prompts.twins is not None:
        urls = execution.of_role("twins") if execution is not None else ()
        chosen, run, details = _with_twins(build, chosen, selector, recipe, options, budget, urls=urls)
        runs.append(run)
    whole = join_results(runs)
    options.tell(table_of_outcomes(whole))
    usage = usage_of(whole, budget, [model.name for model in build.plan.models])
    return chosen, Report(whole.outcomes, usage, details={"requests": whole.requests, **details})


def _labelled(
    build: Build,
    chosen: PromptSelection,
    recipe: Recipe,
    options: BuildOptions,
    budget: Budget,
    execution: Execution | None,
) -> tuple[PromptSelection, RunResult]:
    """Have the rows without a task labelled; those that get none are refused."""
    from stairdata.generators.prompts.task_labels import label_tasks
    from stairdata.runs.executors.executor import HERE

    unlabelled = [row for row in chosen.rows if row["task"] is None]
    result = label_tasks(build, unlabelled, recipe, options, budget, execution or HERE)
    tasks = {row["prompt_id"]: row["task"] for frame in result.frames() for row in frame.iter_rows(named=True)}
    rows = [row | {"task": row["task"] or tasks.get(row["prompt_id"])} for row in chosen.rows]
    sound = [row for row in rows if row["task"] is not None]
    return chosen._replace(rows=sound, refused=[*chosen.refused, *result.refused]), result


def _with_twins(
    build: Build,
    chosen: PromptSelection,
    selector: _PromptSelector,
    recipe: Recipe,
    options: BuildOptions,
    budget: Budget,
    *,
    urls: tuple[str, ...],
) -> tuple[PromptSelection, RunResult, dict[str, Any]]:
    """Have twins written, and put each behind its prompt; of a prompt whose twin is refused nothing is lost."""
    from stairdata.generators.prompts.twins import rows_for_twins, write_twins

    asked = rows_for_twins(chosen.rows, recipe)
    result = write_twins(build, asked, recipe, options, budget, urls)
    numbers = {row["prompt_id"]: number for number, row in enumerate(asked)}
    twins, refused = {}, [*result.refused]
    for frame in result.frames():
        for twin in frame.iter_rows(named=True):
            of = twin["twin_of"]
            fault = selector.add_twin(twin)
            if fault is None:
                twins[of] = twin
            else:
                detail = f"{selector.twin_label(of)}: {fault.detail}"
                refused.append(QuarantineRow("prompts", numbers[of], fault.rule, twin["prompt"], "prompt", detail))
    note = _note_of_twins(len(twins), len(asked), recipe, build.plan.models[-1].name)
    options.tell(note)
    rules = dict(sorted(Counter(each.rule for each in refused).items()))
    rows = [each for row in chosen.rows for each in (row, twins.get(row["prompt_id"])) if each is not None]
    whole = chosen._replace(rows=rows, refused=[*chosen.refused, *refused], notes=(*chosen.notes, note))
    figures = {"prompts": len(asked), "written": len(twins), "refused": rules}
    return whole, result, {"twins": figures} if asked else {}


def _note_of_twins(written: int, asked: int, recipe: Recipe, teacher: str) -> str:
    assert recipe.prompts.twins is not None
    tasks = " or ".join(recipe.prompts.twins.tasks)
    if not asked:
        return f"no prompt has the task {tasks}, so none has a twin"
    return f"{written:,} of {asked:,} prompts of task {tasks} have a harmless twin (`twin_of`), written by {teacher}"


def _notes(given: PromptInputs, chosen: PromptSelection, limit: int | None) -> list[str]:
    """Return where fewer rows were taken than were asked for."""
    if limit is not None:
        return []
    asked = [(pinned, pinned.source.count, chosen.taken[pinned.number]) for pinned in given.sources]
    return [
        f"{_shown(pinned)} gave {taken} of the {count} prompts asked for; no more passed the filters"
        for pinned, count, taken in asked
        if count is not None and taken < count
    ]


def _details(given: PromptInputs, chosen: PromptSelection) -> dict[str, Any]:
    """Return what each source is and gave."""
    sources = [
        {
            "source": _shown(pinned),
            "revision": pinned.source.revision,
            "license": pinned.source.license,
            "rows": chosen.taken[pinned.number],
        }
        for pinned in given.sources
    ]
    return {"sources": sources}


def _shown(pinned: PinnedSource) -> str:
    return pinned.source.path.name if pinned.source.path else str(pinned.source.hub)
