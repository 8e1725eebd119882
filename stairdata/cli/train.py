"""`stairdata train sft|dpo|prm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import InputOption, RecipeOption, RootOption, SetOption, read_recipe, root_folder

if TYPE_CHECKING:
    from stairdata.cli.console import ProgressFunction
    from stairdata.cli.recipes import FullRecipe
    from stairdata_schemas.artifacts import Artifact
    from stairdata_training.output import TrainingSummary

KIND_OF = {"sft": "structured_cot", "dpo": "preference_pairs", "prm": "prm_pairs"}


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
    from stairdata.generators.inputs import open_inputs
    from stairdata_schemas.errors import UsageError, quote, suggest

    if stage not in KIND_OF:
        raise UsageError(f"can't train {quote(stage)}; {suggest(stage, KIND_OF)}")
    settings = read_recipe(recipe, set_)
    section = getattr(settings, stage)
    start, target = model or section.model, output or section.output
    if start is None or target is None:
        what = ("model", "model to start from") if start is None else ("output", "folder to write")
        raise UsageError(f"train {stage} needs a {what[1]}: give --{what[0]}, or {stage}.{what[0]} in the recipe")
    artifact = open_inputs(root_folder(root), input_ or ()).of_kind(KIND_OF[stage])
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
    from stairdata_training.output import finished

    section = getattr(recipe, stage)
    fingerprint = _fingerprint(stage, section.model_dump(mode="json"), artifact, model)
    done = finished(output, fingerprint)
    if done is not None:
        return done
    trainer = _trainer(stage)

    def on_progress(step: int, steps: int, logs: dict[str, float]) -> None:
        loss = f" (loss {logs['loss']:.3f})" if "loss" in logs else ""
        progress(f"train {stage}{loss}", step, steps)

    summary: TrainingSummary = trainer(
        artifact.dataset(),
        model,
        output,
        section,
        fingerprint=fingerprint,
        on_progress=on_progress,
    )
    return summary


def _trainer(stage: str) -> Any:
    from stairdata_schemas.errors import TrainingError

    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise TrainingError(f"training needs {error.name}: pip install 'stairdata[training]'") from error
    from transformers.utils import logging

    logging.set_verbosity_error()
    from stairdata_training.dpo import train_dpo
    from stairdata_training.prm import train_prm
    from stairdata_training.sft import train_sft

    return {"sft": train_sft, "dpo": train_dpo, "prm": train_prm}[stage]


def _fingerprint(stage: str, section: dict[str, Any], artifact: Artifact, model: str) -> str:
    from stairdata_schemas.manifest import sha256_of_json
    from stairdata_schemas.rendering import model_hash

    start = model_hash(Path(model)) if Path(model).is_dir() else model
    rows_decide = {key: value for key, value in section.items() if key not in {"model", "output"}}
    return sha256_of_json([stage, rows_decide, artifact.manifest.content_hash, start])
