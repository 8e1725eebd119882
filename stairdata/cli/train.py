"""`stairdata train sft|dpo|prm`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli.console import emit, say, show_progress
from stairdata.cli.options import (
    InputOption,
    JsonOption,
    RecipeOption,
    RootOption,
    SetOption,
    read_recipe,
    root_folder,
)

if TYPE_CHECKING:
    from stairdata_training.estimate import Estimate


def _print_accelerate_config(name: str | None) -> None:
    if name is None:
        return
    from stairdata_training.launch import accelerate_config

    emit(str(accelerate_config(name)))
    raise typer.Exit


def train(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="sft, dpo or prm.")],
    recipe: RecipeOption = None,
    set_: SetOption = None,
    input_: InputOption = None,
    eval_input: Annotated[
        str | None,
        typer.Option("--eval-input", metavar="REF", help="Held-out pairs on which dpo and prm are measured."),
    ] = None,
    root: RootOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Model to start from; default: the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder to write; default: the recipe's.")] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Replace unfinished work, and a model of other data or settings."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the training would take; load no weights, write nothing.")
    ] = False,
    json_: JsonOption = False,
    _accelerate_config: Annotated[
        str | None,
        typer.Option(
            "--accelerate-config",
            metavar="NAME",
            callback=_print_accelerate_config,
            is_eager=True,
            help="Print where the configuration fsdp2 or zero3 for `accelerate launch` lies, and exit.",
        ),
    ] = None,
) -> None:
    """Train on an artifact; a finished model of the same data and settings is returned as it is."""
    from stairdata.hub.pull import open_reference
    from stairdata.runs.inputs import Inputs
    from stairdata.stages import estimate_training, train_stage
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
    artifact = Inputs(input_ or (), root_folder(root)).of(TRAINED_ON[stage])
    if artifact.manifest.configuration.get("part") == "held_out":
        raise UsageError(
            f"{artifact.reference} is held out for evaluation; name the pairs to train on with --input "
            f"{artifact.kind}@X.Y.Z"
        )
    evaluation = open_reference(eval_input, root_folder(root)) if eval_input else None
    if dry_run:
        _print_estimate(estimate_training(stage, settings, artifact, str(start), Path(target)), json_=json_)
        return
    with show_progress() as progress:
        result = train_stage(
            stage, settings, artifact, str(start), Path(target), progress, evaluation=evaluation, fresh=fresh, tell=say
        )
    if int(os.environ.get("RANK", "0")) > 0:
        return  # the first of several processes speaks for all
    say(f"{stage}: {result.rows} rows, {result.steps} steps, {result.seconds:.0f} s, loss {result.last_loss:.3f}")
    if json_:
        facts = {"stage": stage, "model": str(target), "data": artifact.reference, "rows": result.rows}
        facts |= {"tokens": result.tokens, "steps": result.steps, "seconds": result.seconds}
        emit(json.dumps(facts | {"first_loss": result.first_loss, "last_loss": result.last_loss}))
        return
    emit(str(target))


def _print_estimate(estimate: Estimate, *, json_: bool) -> None:
    if json_:
        emit(json.dumps(estimate.facts()))
        return
    left_out = "".join(f", {count} left out ({why.replace('_', ' ')})" for why, count in estimate.dropped.items())
    lines = [
        f"rows:       {estimate.lengths}{left_out}",
        f"parameters: {estimate.parameters:,}, of which {estimate.trained_parameters:,} are trained",
        f"steps:      {estimate.steps:,}",
        f"tokens:     {estimate.tokens:,}",
        f"memory:     about {estimate.memory_gb:g} GB a process, by a rule of thumb",
    ]
    for line in lines:
        emit(line)
