"""A training from its plan to a finished folder, in one process or several."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from stairdata_schemas.artifacts import Artifact
from stairdata_training import output as outputs
from stairdata_training.cpu import keep_freed_memory
from stairdata_training.data.preparing import Tell
from stairdata_training.method import Method, Prepared, prepare_trainer
from stairdata_training.models import merged, save_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.processes import Processes
from stairdata_training.rounding import (
    changed_share,
    margin_left,
    measure_margins,
    round_weights,
    rounding_warnings,
)
from stairdata_training.trainers import OnProgress, StepCallback


def train(
    plan: TrainingPlan, method: Method, on_progress: OnProgress | None = None, tell: Tell = lambda _: None
) -> TrainingSummary:
    """Run a training to a finished folder, or return the summary of the one that is there.

    Args:
        plan: what to train.
        method: how.
        on_progress: called after each step with step, number of steps, and metrics; by the first process alone.
        tell: called with sentences on the rows and on what went otherwise than hoped; by the first process alone.

    Raises:
        TrainingError: the data can't be trained on, the training left the finite, or the output folder holds something
            else.
        ModelError: no usable model.
        BuildLockedError: another training is going on in that folder.
    """
    processes = Processes()
    keep_freed_memory()
    output = plan.output.absolute()
    partial = outputs.partial_folder(output)
    with outputs.locked(output) if processes.is_first else nullcontext(), quiet():
        done = processes.first_does(lambda: _finished_or_started(plan, output))
        if done is not None:
            return done
        processes.check_folder_is_shared(partial)
        told: list[str] = []

        def warn(message: str) -> None:
            told.append(message)
            if processes.is_first:
                tell(f"warning: {message}")

        for message in plan.warnings():
            warn(message)
        with outputs.failures_named(partial, plan.method):
            prepared = prepare_trainer(
                method, plan.rows(), plan.model, plan.config, partial, processes=processes, tell=tell
            )
            summary = _run(prepared, plan.method, output, partial, on_progress if processes.is_first else None)
            return processes.first_does(lambda: _publish(plan, prepared, summary, told, warn))


def _finished_or_started(plan: TrainingPlan, output: Path) -> TrainingSummary | None:
    done = outputs.finished(output, plan.identity, fresh=plan.fresh)
    if done is None:
        outputs.publish_finished(output)
        done = outputs.finished(output, plan.identity, fresh=plan.fresh)
    if done is None:
        outputs.start(output, plan.identity, fresh=plan.fresh)
    return done


def _run(
    prepared: Prepared, method: str, output: Path, partial: Path, on_progress: OnProgress | None
) -> TrainingSummary:
    """Train, from the newest whole checkpoint if there is one."""
    trainer = prepared.trainer
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepCallback(method, trainer, on_progress))
    checkpoint = outputs.last_checkpoint(partial)
    if checkpoint is not None:
        trainer._total_train_tokens = _tokens_so_far(checkpoint)  # TRL would count from zero again
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = tuple((int(entry["step"]), float(entry["loss"])) for entry in history)
    return TrainingSummary(
        output=output,
        method=method,
        rows=len(trainer.train_dataset),
        tokens=int(history[-1]["num_tokens"]),
        steps=int(trainer.state.global_step),
        seconds=round(time.monotonic() - started, 2),
        first_loss=losses[0][1],
        last_loss=losses[-1][1],
        losses=losses,
    )


def _tokens_so_far(checkpoint: Path) -> int:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(max(entry.get("num_tokens", 0) for entry in state["log_history"]))


def _publish(
    plan: TrainingPlan, prepared: Prepared, summary: TrainingSummary, told: list[str], warn: Tell
) -> TrainingSummary:
    """Save the model, say what of the training is left in the saved weights, and move it to its place."""
    import torch

    trainer, config = prepared.trainer, plan.config
    partial = outputs.partial_folder(summary.output)
    network = merged(trainer.accelerator.unwrap_model(trainer.model))
    trained = measure_margins(plan.method, trainer, network)
    round_weights(network, getattr(torch, config.save_dtype))
    left = margin_left(trained, measure_margins(plan.method, trainer, network))
    save_model(network, trainer.processing_class, partial, config.save_dtype)
    for message in rounding_warnings(plan.method, left, trained, config.save_dtype):
        warn(message)
    dropped = {why: names for why, names in prepared.rows.dropped.items() if names}
    for why, names in dropped.items():
        warn(f"{len(names)} rows were left out ({why.replace('_', ' ')}); training.json names them")
    facts = {
        "config": config.model_dump(mode="json") | {"model": str(plan.model), "processes": plan.processes},
        "data": plan.data.as_parent().model_dump(mode="json") if isinstance(plan.data, Artifact) else None,
        "base_model": _base_model(plan, network),
        "lengths": asdict(prepared.rows.lengths),
        "dropped": dropped,
        "weights": {
            "dtype": config.save_dtype,
            "changed_share": changed_share(plan.model, partial),
            "margin_left": left,
        },
        "warnings": told,
        "metrics": [_finite(entry) for entry in trainer.state.log_history],
    }
    return outputs.finish(summary.output, plan.identity, facts, summary)


def _base_model(plan: TrainingPlan, network: Any) -> dict[str, str | None]:
    folder = Path(plan.model)
    if folder.is_dir():
        return {"name": folder.name, "revision": plan.identity["start_model"]}
    return {"name": str(plan.model), "revision": getattr(network.config, "_commit_hash", None)}


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """Return logged metrics as JSON has them; a metric may be without a value, such as an accuracy of nothing."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars away; progress goes to `on_progress`."""
    import datasets

    verbose = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    shown, before = datasets.is_progress_bar_enabled(), os.environ.get("TQDM_DISABLE")
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if verbose:
            transformers_logging.enable_progress_bar()
        if shown:
            datasets.enable_progress_bars()
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
