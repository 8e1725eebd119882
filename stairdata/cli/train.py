"""`stairdata train sft|dpo|prm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import InputOption, RecipeOption, RootOption, SetOption, read_recipe, root_folder

if TYPE_CHECKING:
    from stairdata.cli.console import ProgressFunction
    from stairdata.cli.recipes import FullRecipe
    from stairdata_schemas.artifacts import Artifact
    from stairdata_training.output import TrainingSummary


def train(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="sft, dpo or prm.")],
    recipe: RecipeOption = None,
    set_: SetOption = None,
    input_: InputOption = None,
    root: RootOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Model to start from; default: the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder to write; default: the recipe's.")] = None,
) -> None:
    """Train on an artifact; a finished model of the same data and settings is returned as it is."""
    from stairdata.generators.options import BuildOptions
    from stairdata_schemas.errors import UsageError, quote, suggest
    from stairdata_training.config import TRAINED_ON

    if stage not in TRAINED_ON:
        raise UsageError(f"can't train {quote(stage)}; {suggest(stage, TRAINED_ON)}")
    settings = read_recipe(recipe, set_)
    section = getattr(settings, stage)
    start, target = model or section.model, output or section.output
    if start is None or target is None:
        what = ("model", "model to start from") if start is None else ("output", "folder to write")
        raise UsageError(f"train {stage} needs a {what[1]}: give --{what[0]}, or {stage}.{what[0]} in the recipe")
    artifact = BuildOptions(root_folder(root), inputs=tuple(input_ or ())).parent(TRAINED_ON[stage])
    if artifact.manifest.configuration.get("part") == "held_out":
        raise UsageError(
            f"{artifact.reference} is held out for evaluation; name the pairs to train on with --input "
            f"{artifact.kind}@X.Y.Z"
        )
    with show_progress() as progress:
        result = train_stage(stage, settings, artifact, str(start), Path(target), progress)
    say(f"{stage}: {result.rows} rows, {result.steps} steps, {result.seconds:.0f} s, loss {result.last_loss:.3f}")
    emit(str(target))


def train_stage(
    stage: str, recipe: FullRecipe, artifact: Artifact, model: str, output: Path, progress: ProgressFunction
) -> TrainingSummary:
    """Run one training stage.

    Raises:
        TrainingError: the training extra is missing, or the data would train something else than meant.
    """
    from stairdata_training.plan import TrainingPlan

    plan = TrainingPlan(stage, artifact, model, output, getattr(recipe, stage))
    done = plan.finished()
    if done is not None:
        return done  # before torch is imported, which takes seconds
    _prepare_libraries()
    from stairdata_training import running
    from stairdata_training.dpo import dpo_trainer
    from stairdata_training.prm import prm_trainer
    from stairdata_training.sft import sft_trainer

    def on_progress(step: int, steps: int, logs: dict[str, float]) -> None:
        loss = f" (loss {logs['loss']:.3f})" if "loss" in logs else ""
        progress(f"train {stage}{loss}", step, steps)

    trainers: dict[str, running.BuildTrainer] = {"sft": sft_trainer, "dpo": dpo_trainer, "prm": prm_trainer}
    return running.train(plan, trainers[stage], on_progress)


def _prepare_libraries() -> None:
    """Check that the training extra is there, and keep its notes off the terminal.

    Raises:
        TrainingError: it is not.
    """
    from stairdata_schemas.errors import TrainingError

    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise TrainingError(f"training needs {error.name}: pip install 'stairdata[training]'") from error
    from transformers.utils import logging

    logging.set_verbosity_error()
