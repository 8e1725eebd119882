"""The stages of STAIR in order: SFT, K rounds of trees, pairs and DPO, and the process reward model (paper, section 3).

Finished stages are found by their fingerprints, so a run that was killed is finished by running it again, and a
setting that is changed redoes its stage and those that follow from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stairdata.generators.pairs.build import NoPairsError
from stairdata.generators.prompts.part import build_prompt_part
from stairdata.llm.kept_servers import end_servers, keeping_servers, start_early
from stairdata.llm.session import server_options
from stairdata.pipeline import measures, results
from stairdata.pipeline.steps import RunOptions, RunSteps, Until
from stairdata.recipe.attacks import AttacksSection
from stairdata.runs.prompt_parts import PromptPart, PromptSplit, check_no_repeats, split_prompts
from stairdata.search.refusal import refusal_rule_note
from stairdata_schemas.errors import BuildLockedError, RecipeError, quote
from stairdata_schemas.files import write_atomic
from stairdata_schemas.rendering import load_tokenizer, missing_tags
from stairdata_schemas.secrets.own_command import own_command

if TYPE_CHECKING:
    from stairdata.recipe import Endpoint, EvaluationsSection, ModelServer
    from stairdata.stages import FullRecipe
    from stairdata_schemas.aliases import Row
    from stairdata_schemas.artifacts import Artifact

BASE, SFT, PRM = "base", "sft", "prm"
STARTED = "started.json"
"""The command of a run, in its folder until the run is finished."""
SERVER_LOG = "server.log"
"""Of the first server, which may start before the stage that asks it; later ones have theirs in a build's folder."""
HELD_OUT_PAIRS = {"hold_out": 1.0, "part": "held_out"}
"""Settings of pairs whose trees are all held out; trainings refuse such pairs as those to train on."""


class RoundTrees(NamedTuple):
    """What an actor has grown in a round."""

    trained_on: Artifact
    evaluated_on: Artifact | None
    """From other prompts; None if nothing is measured on them."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process.

    Raises:
        BuildLockedError: another process runs in it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BuildLockedError(f"another run is at work in {folder}; wait for it, or name a --folder") from error
    with lock:
        yield


def check_recipe(recipe: FullRecipe, until: Until = "end") -> None:
    """Refuse what a run can't do, before anything is made.

    Args:
        recipe: all sections.
        until: what is trained last.

    Raises:
        RecipeError: says what to change.
    """
    if recipe.actor.base_url is not None:
        raise RecipeError(
            "run serves the models that it trains, and actor.base_url is a server elsewhere: leave it out, and give "
            "the model to start from as sft.model (a folder or Hub id)"
        )
    if start_model(recipe) is None:
        raise RecipeError("run needs a model to start from: give sft.model (a folder or Hub id)")
    if not recipe.sft.reasoning and until != "sft":
        raise RecipeError(
            "sft.reasoning: false trains a model that knows no steps, and a run grows trees of steps: leave it out; "
            "`stairdata train sft --recipe direct-refusal` trains such a model to compare with"
        )
    if recipe.structured_cot.from_trees is not None:
        raise RecipeError(
            "structured_cot.from_trees takes rows out of trees, and a run has none before its first round: give "
            "structured_cot.path, .hub or .teacher, or none of them with a model that is trained on the step grammar"
        )
    if recipe.evaluations.models:
        raise RecipeError(
            "run tests the models that it trains on evaluations.benchmarks, and evaluations.models names others: leave "
            "it out, and test those with `stairdata build evaluations`"
        )
    if recipe.rounds.searches and not recipe.evaluations.benchmarks:
        raise RecipeError(
            "rounds.searches are tested on the benchmarks of evaluations, and there are none: give "
            "evaluations.benchmarks, or leave rounds.searches out"
        )
    if recipe.responses.method != "sample" or recipe.responses.n != 1 or recipe.responses.prm is not None:
        raise RecipeError(
            "run measures single answers and has a process reward model of its own: leave responses.method, .n and "
            ".prm out, and give rounds.best_of for the best of several answers at the end"
        )


def start_model(recipe: FullRecipe) -> str | None:
    """Return the folder or Hub id of the model that a run starts from."""
    return recipe.sft.model or recipe.actor.path


def asks_teacher(recipe: FullRecipe) -> bool:
    """Tell whether the structured reasoning comes from a teacher, not from a file or the Hub."""
    section = recipe.structured_cot
    named = section.teacher.base_url is not None or section.teacher.path is not None
    return named and section.path is None and section.hub is None


def trains_sft(recipe: FullRecipe) -> bool:
    """Tell whether there is structured reasoning to train on; without it the start model has to know the grammar."""
    section = recipe.structured_cot
    return asks_teacher(recipe) or section.path is not None or section.hub is not None


@dataclass(slots=True)
class Pipeline:
    """One run through all stages.

    Raises:
        RecipeError: a recipe that a run can't follow.
    """

    recipe: FullRecipe
    options: RunOptions
    steps: RunSteps = field(init=False)
    prompts: Artifact | None = None
    """All of them, once they are there."""
    split: PromptSplit | None = None
    held_out: Artifact | None = None
    rows: list[Row] = field(default_factory=list)
    """Of rounds.csv."""
    answers: dict[str, Artifact] = field(default_factory=dict)
    """Single answers to the held-out prompts, by the model's name."""
    best: Artifact | None = None
    prm_measures: dict[str, Any] | None = None
    """Of the process reward model on held-out pairs."""
    stopped: dict[str, Any] | None = None
    """Why the run ended before its last round."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What summary.json says besides."""
    at_end: Callable[[FullRecipe], None] | None = None
    """Called with the recipe by which the last actor answers, while its server may still run."""

    def __post_init__(self) -> None:
        check_recipe(self.recipe, self.options.until)
        self.steps = RunSteps(self.recipe, self.options)

    def run(self) -> dict[str, Any]:
        """Run or skip each stage in order, and write rounds.csv, rounds.png, summary.json and the report.

        Whoever may have company in the folder holds it with `locked`.
        """
        self.options.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.options.folder / STARTED, json.dumps(own_command()) + "\n")
        write_atomic(self.options.folder / "recipe.json", self.recipe.model_dump_json(indent=2) + "\n")
        prm = self.make()
        assert prm is not None, "a whole run trains one"
        folder = self.options.folder
        results.write_plot(folder, self.rows, self.options.tell)
        summary = {
            **self.extra,
            "stages": self.steps.records,
            "servers": self.steps.times,
            "rounds": self.rows,
            "prm": self.prm_measures,
            "stopped": self.stopped,
            "table": results.table(folder, self.answers, self.best, prm, self.recipe.rounds.best_of),
            "refusal_rule": refusal_rule_note(),
        }
        self.steps.end_stage("results")
        results.write_summary(folder, summary)
        summary["report"] = results.write_report(folder, self.options.tell)
        results.write_summary(folder, summary)
        (folder / STARTED).unlink(missing_ok=True)
        return summary

    def make(self) -> str | None:
        """Run or skip each stage, and return the folder of the process reward model; None where it ends before.

        The server of a model runs from its first answer to its last, or until a training needs the memory.
        """
        with self.steps.watch.watching(), keeping_servers():
            return self._make()

    def _make(self) -> str | None:
        actor = self._first_actor()
        if self.options.until == "sft":
            return None
        trees: RoundTrees | None = None
        assert self.split is not None
        for number, part in enumerate(self.split.rounds, 1):
            if not self.options.only_finished:
                self.options.tell(f"round {number} of {len(self.split.rounds)}, {part.size} prompts")
            trees, actor = self._round(number, part, actor)
            if self._is_stopped(number):
                break
        if self.options.until == "rounds":
            return None
        assert trees is not None, "there is a round"
        evaluation = self._held_out_pairs("prm_pairs", trees)
        pairs = self.steps.build("prm_pairs", self.recipe, self.steps.build_options([trees.trained_on]))
        prm = self.steps.train("prm", pairs, actor, PRM, evaluation=evaluation)
        self.prm_measures = measures.prm_measures(Path(prm), evaluation)
        end_servers(actor, *self._asked_by_evaluations())
        self._answer_best(actor, prm)
        self._search(actor, prm)
        if self.at_end is not None:
            self.at_end(self._searching(actor, prm))
        return prm

    def structured_cot(self) -> Artifact:
        """Make the rows that SFT trains on."""
        parents = self.teacher_prompts() if asks_teacher(self.recipe) else []
        options = self.steps.build_options(parents, self.recipe.rounds.sft_rows)
        return self.steps.build("structured_cot", self.recipe, options)

    def _first_actor(self) -> str:
        """Make the prompts and the actor of round 1: by SFT, or the start model if it knows the grammar."""
        options = replace(self.steps.build_options([]), on_begin=self._start_first_server)
        self.prompts = self.steps.build("prompts", self.recipe, options)
        self.split = split_prompts(self.prompts.manifest.rows, self.recipe.rounds)
        check_no_repeats(self.prompts, self.split, self.recipe.seed)
        if self.recipe.rounds.held_out:
            self.held_out = self._part("prompts (held out)", self.split.held_out)
        start = start_model(self.recipe)
        assert start is not None, "checked before"
        if not trains_sft(self.recipe):
            _check_grammar(start)
            self._measure(BASE, start, 0, is_ours=False)
            return start
        rows = self.structured_cot()
        self._warn_of_shared(rows)
        self._measure(BASE, start, None, is_ours=False)
        actor = self.steps.train("sft", rows, start, SFT)
        self._measure(SFT, actor, 0)
        return actor

    def _start_first_server(self) -> None:
        """Start the server that is needed first while prompts are made, unless these ask a model here themselves."""
        twins, limits = self.recipe.prompts.twins, self.steps.build_options([]).limits
        asked = served_here(self.recipe.prompts.task_judge, twins.teacher if twins else None)
        endpoint = self._first_served()
        if endpoint is not None and not asked and 0 not in {limits.total_tokens, limits.cost, limits.seconds}:
            start_early(server_options(endpoint, self.options.folder / SERVER_LOG))

    def _first_served(self) -> Endpoint | None:
        """Return the model of the first server; None where other servers or a training come before."""
        if asks_teacher(self.recipe):
            teacher = self.recipe.structured_cot.teacher
            return teacher if teacher.path is not None else None
        is_measured = self.recipe.rounds.held_out or self.recipe.evaluations.benchmarks
        if trains_sft(self.recipe) and not is_measured:
            return None
        return self.steps.with_actor(start_model(self.recipe) or "", is_ours=False).actor

    def _round(self, number: int, part: PromptPart, actor: str) -> tuple[RoundTrees, str]:
        """Grow trees with an actor, and train the next one on their pairs."""
        trees = self._trees(number, part, actor)
        evaluation = self._held_out_pairs("preference_pairs", trees, number)
        reviews = self.recipe.rounds.reviews.get(number)
        options = self.steps.build_options([trees.trained_on])
        pairs = self.steps.build("preference_pairs", self.recipe, options, number=number, reviews=reviews)
        name = f"dpo-{number}"
        actor = self.steps.train("dpo", pairs, actor, name, number, evaluation)
        self._measure(name, actor, number, evaluation=evaluation, prompts=part.size, pairs=pairs.manifest.rows)
        return trees, actor

    def _trees(self, number: int, part: PromptPart, actor: str) -> RoundTrees:
        """Grow a round's trees, and those that are held out.

        They are two artifacts, so that another number of prompts to evaluate on leaves those that are trained on as
        they are. The held-out ones come first: a command that is given no version takes the newest.
        """
        assert self.prompts is not None
        assert self.split is not None
        section = self.recipe.trees.model_copy(update={"round": number})
        judge = self.recipe.trees.judge
        end_servers(actor, *served_here(judge.endpoint, judge.helpfulness))
        is_ours = number > 1 or trains_sft(self.recipe)
        recipe = self.steps.with_actor(actor, is_ours=is_ours, trees=section)
        held_out = None
        if self.split.evaluation.size:
            options = self.steps.build_options([self.prompts], part=self.split.evaluation)
            held_out = self.steps.build("trees", recipe, options, name="trees (held out)", number=number)
        options = self.steps.build_options([self.prompts], part=part)
        return RoundTrees(self.steps.build("trees", recipe, options, number=number), held_out)

    def _held_out_pairs(self, kind: str, trees: RoundTrees, number: int | None = None) -> Artifact | None:
        """Take the pairs that a model is measured on; None where there are none."""
        if trees.evaluated_on is None:
            return None
        update: dict[str, Any] = HELD_OUT_PAIRS | ({"whole_answers": True} if kind == "prm_pairs" else {})
        section = getattr(self.recipe, kind).model_copy(update=update)
        recipe = self.recipe.model_copy(update={kind: section})
        options = self.steps.build_options([trees.evaluated_on])
        try:
            return self.steps.build(kind, recipe, options, name=f"{kind} (held out)", number=number)
        except NoPairsError as error:
            self.options.tell(f"warning: nothing to measure on, raise rounds.eval_prompts: {error}")
            return None

    def _measure(
        self,
        name: str,
        model: str,
        number: int | None,
        *,
        is_ours: bool = True,
        evaluation: Artifact | None = None,
        **counts: int,
    ) -> None:
        """Let a model answer the held-out prompts, and add its row to rounds.csv."""
        row: Row = {"round": number, "model": name, "prompts": None, "pairs": None, **counts}
        recipe = self.steps.with_actor(model, is_ours=is_ours)
        end_servers(model, *self._asked_by_evaluations())
        if self.held_out is not None:
            options = self.steps.build_options([self.held_out])
            answers = self.steps.build("responses", recipe, options, name=f"responses ({name})", number=number or None)
            self.answers[name] = answers
            row |= measures.answer_measures(answers, self.held_out)
        if recipe.evaluations.benchmarks:
            row |= measures.evaluation_measures(self._evaluate(name, recipe, number))
        row |= measures.training_measures(Path(model)) | measures.accuracy_measures(Path(model), evaluation)
        self.rows.append(row)
        if not self.options.only_finished:
            results.write_table(self.options.results_folder, self.rows)

    def _is_stopped(self, number: int) -> bool:
        """Tell whether `stop_below` ends the run after a round."""
        rounds = self.recipe.rounds
        broken = measures.broken_limit(self.rows[-1], rounds.stop_below)
        absent = [name for name in rounds.stop_below if self.rows[-1].get(name) is None]
        if absent:
            self.options.tell(f"rounds.stop_below: round {number} has no {', '.join(absent)}, so it stops nothing")
        if broken is None or number == rounds.count:
            return False
        name, value, limit = broken
        left = [f"dpo-{later}" for later in range(number + 1, rounds.count + 1)]
        self.stopped = {"round": number, "measure": name, "value": value, "limit": limit, "not_trained": left}
        self.options.tell(
            f"stopped after round {number} of {rounds.count}: {name} is {value:g}, below the {limit:g} of "
            f"rounds.stop_below; {', '.join(left)} will not be trained, and the process reward model is trained from "
            f"dpo-{number}"
        )
        return True

    def _answer_best(self, actor: str, prm: str) -> None:
        n = self.recipe.rounds.best_of
        if n == 1 or self.held_out is None:
            return
        name = f"responses ({self.rows[-1]['model']}, best of {n})"
        options = self.steps.build_options([self.held_out])
        self.best = self.steps.build("responses", self._searching(actor, prm), options, name=name)

    def _evaluate(self, name: str, recipe: FullRecipe, number: int | None = None) -> Artifact:
        """Test the recipe's actor on the benchmarks."""
        options = self.steps.build_options([])
        return self.steps.build("evaluations", recipe, options, name=f"evaluations ({name})", number=number or None)

    def _asked_by_evaluations(self) -> list[str]:
        """Return the models that evaluations ask besides the tested one, where they are served here."""
        section = self.recipe.evaluations
        return served_here(section.judge, section.attacks.attacker) if section.benchmarks else []

    def _search(self, actor: str, prm: str) -> None:
        """Test the ways in which the last actor searches."""
        for search in self.recipe.rounds.searches:
            section = self.recipe.responses.model_copy(update={**search.settings(), "prm": prm})
            recipe = self.steps.with_actor(actor, responses=section, evaluations=searched(self.recipe))
            self._evaluate(f"{self.rows[-1]['model']}, {search.title}", recipe)

    def _searching(self, actor: str, prm: str) -> FullRecipe:
        """Return the recipe by which the last actor answers, the best of several times."""
        best = {"method": "best_of_n", "n": self.recipe.rounds.best_of, "prm": prm}
        return self.steps.with_actor(actor, responses=self.recipe.responses.model_copy(update=best))

    def teacher_prompts(self) -> list[Artifact]:
        """Return the prompts that the teacher is asked: of their own sources, else those that aren't held out."""
        sources = self.recipe.rounds.sft_prompts
        if sources:
            section = self.recipe.prompts.model_copy(update={"sources": sources})
            recipe = self.recipe.model_copy(update={"prompts": section})
            return [self.steps.build("prompts", recipe, self.steps.build_options([]), name="prompts (sft)")]
        assert self.prompts is not None
        assert self.split is not None
        is_all = not self.recipe.rounds.held_out
        return [self.prompts if is_all else self._part("prompts (sft)", self.split.others)]

    def _part(self, name: str, part: PromptPart) -> Artifact:
        assert self.prompts is not None
        options = self.steps.build_options([self.prompts])
        return self.steps.record(name, build_prompt_part(self.prompts, part, self.recipe.seed, options))

    def _warn_of_shared(self, rows: Artifact) -> None:
        """Say so where SFT trains on prompts that models are measured on."""
        if self.held_out is None:
            return
        held_out = set(self.held_out.scan().select("prompt_id").collect()["prompt_id"])
        shared = held_out & set(rows.scan().select("prompt_id").collect()["prompt_id"])
        if shared:
            self.options.tell(
                f"warning: {len(shared)} of {len(held_out)} held-out prompts are in {rows.reference}, which sft trains "
                "on, so measures are too good"
            )


def served_here(*endpoints: ModelServer | None) -> list[str]:
    """Return the models of endpoints that name one, in place of a URL."""
    return [endpoint.path for endpoint in endpoints if endpoint is not None and endpoint.path is not None]


def searched(recipe: FullRecipe) -> EvaluationsSection:
    """Return the evaluations of searches: a part of the benchmarks' prompts, without attacks."""
    most = recipe.rounds.searched_prompts
    benchmarks = [
        benchmark if most is None else benchmark.model_copy(update={"count": min(most, benchmark.count or most)})
        for benchmark in recipe.evaluations.benchmarks
    ]
    return recipe.evaluations.model_copy(update={"benchmarks": benchmarks, "attacks": AttacksSection()})


def _check_grammar(model: str) -> None:
    """Refuse to grow trees with a model that does not know the step grammar.

    Raises:
        RecipeError: its tokenizer lacks tags.
    """
    missing = missing_tags(load_tokenizer(model))
    if missing:
        raise RecipeError(
            f"the recipe has no structured reasoning to train sft on, and the tokenizer of {quote(model)} lacks "
            f"{', '.join(missing)}: give structured_cot.path, .hub or .teacher, or start from a model that was trained "
            "on the step grammar"
        )
