"""One stage of a run at a time: an artifact, or a model, made or found, and recorded for the summary."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stairdata.llm.budget import BudgetLimits
from stairdata.llm.kept_servers import end_servers
from stairdata.llm.server_times import ServerWatch
from stairdata.pipeline.model_folders import folder_for, held_out_measures, is_finished
from stairdata.pipeline.spending import RunSpending
from stairdata.recipe import Price
from stairdata.runs.build import NotBuiltError
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import Progress, quiet
from stairdata.stages import build_kind, train_stage
from stairdata_schemas.errors import BudgetError
from stairdata_training.plan import TrainingPlan

if TYPE_CHECKING:
    from stairdata.runs.prompt_parts import PromptPart
    from stairdata.stages import FullRecipe
    from stairdata_schemas.artifacts import Artifact
    from stairdata_training.config import SaveDtype, TrainingConfig

SAVED_TYPE: SaveDtype = "float32"
Until = Literal["sft", "rounds", "end"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run is told besides its recipe."""

    folder: Path
    progress: Progress = quiet
    tell: Callable[[str], None] = lambda _: None
    """Called with text for the user."""
    limits: BudgetLimits = field(default_factory=BudgetLimits)
    """Of the whole run; `seconds` of this command."""
    max_quarantine: float = 0.05
    """Largest share of refused rows of a stage."""
    fresh: bool = False
    """Build each artifact anew; a finished model of the same rows and settings stays."""
    only_finished: bool = False
    """Go as far as everything is finished, then raise `NotBuiltError`; nothing is written."""
    until: Until = "end"
    """What is trained last: `sft`, the actors of all `rounds`, or everything."""
    results: Path | None = None
    """Folder of rounds.csv; default: that of the run. Another one keeps a changed recipe's figures apart from those of
    the run whose artifacts and models it shares."""

    @property
    def results_folder(self) -> Path:
        return self.results or self.folder


class RunSteps:
    """Runs single stages; each that is finished is found by its fingerprint.

    Args:
        recipe: all sections.
        options: of the run.

    Attributes:
        records: what was made or found, in order, as summary.json has it.
        watch: of the servers of all stages.
        times: of the servers in each stage of this command, as summary.json has them.
    """

    def __init__(self, recipe: FullRecipe, options: RunOptions) -> None:
        self.recipe = recipe
        self.options = options
        self.records: list[dict[str, Any]] = []
        self.watch = ServerWatch()
        self.times: list[dict[str, Any]] = []
        self._spending = RunSpending(options.limits)

    def build_options(
        self, parents: list[Artifact], limit: int | None = None, part: PromptPart | None = None
    ) -> BuildOptions:
        """Return what a generator is told."""
        options = self.options
        return BuildOptions(
            root=options.folder / "artifacts",
            inputs=tuple(str(parent.folder.resolve()) for parent in parents),
            limit=limit,
            part=part,
            only_finished=options.only_finished,
            fresh=options.fresh,
            max_quarantine=options.max_quarantine,
            progress=options.progress,
            limits=self._spending.left(),
            tell=options.tell,
        )

    def build(
        self,
        kind: str,
        recipe: FullRecipe,
        options: BuildOptions,
        *,
        name: str | None = None,
        number: int | None = None,
        **own: Any,
    ) -> Artifact:
        """Build an artifact, or find the finished one.

        Args:
            kind: of the artifact.
            recipe: with what the stage alone has.
            options: of the build.
            name: of the stage; default: the kind.
            number: of the round.
            own: what the kind's generator takes besides.
        """
        try:
            artifact = build_kind(kind, recipe, options, **own)
        except BudgetError as error:
            raise self._spending.explained(error) from error
        assert artifact is not None, "only a batch leaves a build unfinished"
        return self.record(name or kind, artifact, number)

    def record(self, name: str, artifact: Artifact, number: int | None = None) -> Artifact:
        """Note an artifact of this run, with what it has cost."""
        manifest = artifact.manifest
        self._spending.count(artifact)
        self.records.append(
            {
                "stage": name,
                **_in_round(number),
                "artifact": artifact.reference,
                "folder": str(artifact.folder),
                "rows": manifest.rows,
                "refused": sum(manifest.quarantine.values()),
                "tokens": manifest.usage.completion_tokens,
                "seconds": manifest.seconds,
            }
        )
        self.end_stage(name, number)
        return artifact

    def end_stage(self, name: str, number: int | None = None) -> None:
        """Note what the servers did since the end of the stage before."""
        seconds = self.watch.end_stage()._asdict()
        self.times.append({"stage": name, **_in_round(number)} | {key: round(each, 1) for key, each in seconds.items()})

    def train(
        self,
        method: str,
        data: Artifact,
        start: str,
        name: str,
        number: int | None = None,
        evaluation: Artifact | None = None,
    ) -> str:
        """Train a model, or find the finished one, and return its folder.

        A finished model that is to be measured on other pairs than before is measured, not trained again.

        Args:
            method: sft, dpo or prm.
            data: what it is trained on.
            start: model folder or Hub id.
            name: of the folder, unless another training has it.
            number: of the round.
            evaluation: held-out pairs that it is measured on.
        """
        section = saved_whole(getattr(self.recipe, method))
        models = self.options.folder / "models"
        fingerprint = TrainingPlan(method, data, start, models / name, section).fingerprint
        output = folder_for(models, name, fingerprint)
        is_trained = is_finished(output, fingerprint)
        is_measured = evaluation is None or held_out_measures(output, evaluation.manifest.content_hash) is not None
        if self.options.only_finished and not (is_trained and is_measured):
            what = "measured on the held-out pairs" if is_trained else "trained"
            raise NotBuiltError(f"{output} is not {what}; the same command without --dry-run does it")
        if not is_trained:
            self._spending.check_time(f"training {name}")
        if not (is_trained and is_measured):
            end_servers()
        recipe = self.recipe.model_copy(update={method: section})
        result = train_stage(
            method, recipe, data, start, output, self.options.progress, evaluation=evaluation,
            fresh=self.options.fresh, tell=self.options.tell,
        )  # fmt: skip
        _free_gpu()
        self.records.append(
            {
                "stage": f"train {method}",
                **_in_round(number),
                "model": str(output),
                "data": data.reference,
                **({} if evaluation is None else {"evaluation": evaluation.reference}),
                "rows": result.rows,
                "tokens": result.tokens,
                "seconds": round(result.seconds, 1),
            }
        )
        self.end_stage(f"train {method}", number)
        return str(output)

    def with_actor(self, model: str, *, is_ours: bool = True, **sections: Any) -> FullRecipe:
        """Return the recipe with a model as the actor, served here.

        Args:
            model: folder or Hub id.
            is_ours: trained in this run, so that its tokenizer lies in its folder.
            sections: that replace the recipe's.
        """
        actor = self.recipe.actor
        changes: dict[str, Any] = {"path": model} | ({"tokenizer": None} if is_ours else {})
        served = actor.model_copy(update=changes)
        if self.options.limits.cost is not None or self.options.only_finished:
            # a limit and a forecast need the price of each model, and this one runs here
            sections["prices"] = {served.name: Price()} | self.recipe.prices
        return self.recipe.model_copy(update={"actor": served, **sections})


def saved_whole(section: TrainingConfig) -> TrainingConfig:
    """Save weights in 32 bits unless the recipe says otherwise: the next round's training starts from them."""
    if "save_dtype" in section.model_fields_set:
        return section
    return section.model_copy(update={"save_dtype": SAVED_TYPE})


def _free_gpu() -> None:
    """Give back the memory that a training has freed and torch keeps: the next stage's server wants most of the GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _in_round(number: int | None) -> dict[str, int]:
    return {} if number is None else {"round": number}
