"""A training from its plan to a finished folder, in one process or several."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from stairdata_schemas.artifacts import Artifact
from stairdata_training import output as outputs
from stairdata_training.data.preparing import Tell
from stairdata_training.held_out import NOT_BETTER, WRONG_WAY
from stairdata_training.held_out.measuring import measure_folder
from stairdata_training.held_out.shared_prompts import check_no_shared_prompts
from stairdata_training.models import save_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.processes import Processes
from stairdata_training.record.card import write_card
from stairdata_training.record.environment import environment
from stairdata_training.record.rounding import (
    changed_share,
    margin_left,
    measure_margins,
    round_weights,
    rounding_warnings,
)
from stairdata_training.sharding import check_checkpoint, gathered, sharding_here
from stairdata_training.trainers.cpu import keep_freed_memory
from stairdata_training.trainers.method import Method, Prepared, prepare_trainer, trained_network
from stairdata_training.trainers.mixin import OnProgress, StepCallback


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
    reports = _Reports(on_progress, tell) if processes.is_first else _Reports()
    keep_freed_memory()
    output = plan.output.absolute()
    partial = outputs.partial_folder(output)
    with outputs.locked(output) if processes.is_first else nullcontext(), quiet():
        processes.first_does(lambda: _check_evaluation(plan))
        done = processes.first_does(lambda: _finished_or_started(plan, output))
        if done is None:
            processes.check_folder_is_shared(partial)
            with outputs.failures_named(partial, plan.method):
                done = _train(plan, method, processes, reports)
        with outputs.failures_named(output, plan.method):
            processes.first_does(lambda: _measure(plan, output, tell))  # which loads models of its own
        return done


@dataclass(slots=True)
class _Reports:
    """Who hears what is going on, and the warnings that training.json keeps."""

    on_progress: OnProgress | None = None
    tell: Tell = lambda _: None
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.tell(f"warning: {message}")


def _train(plan: TrainingPlan, method: Method, processes: Processes, reports: _Reports) -> TrainingSummary:
    """Train and publish; the trainer and its model are gone afterwards."""
    partial = outputs.partial_folder(plan.output.absolute())
    for message in plan.warnings():
        reports.warn(message)
    prepared = prepare_trainer(
        method, plan.rows(), plan.model, plan.config, partial, processes=processes, tell=reports.tell
    )
    if processes.sharding == "DeepSpeed":
        reports.warn("weights are sharded by DeepSpeed, with which trainings have never been tested")
    summary = _run(prepared, plan.method, plan.output.absolute(), partial, reports.on_progress)
    weights = gathered(prepared.trainer) if processes.sharding else {}
    processes.first_does(lambda: _publish(plan, prepared, weights, summary, reports))
    return summary


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
        check_checkpoint(checkpoint, sharding_here())
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
    plan: TrainingPlan, prepared: Prepared, weights: dict[str, Any], summary: TrainingSummary, reports: _Reports
) -> None:
    """Save the model, say what of the training is left in the saved weights, and move it to its place."""
    import torch

    trainer, config = prepared.trainer, plan.config
    partial = outputs.partial_folder(summary.output)
    network = trained_network(prepared, weights)
    trained = measure_margins(plan.method, trainer, network)
    round_weights(network, getattr(torch, config.save_dtype))
    left = margin_left(trained, measure_margins(plan.method, trainer, network))
    if any(weight.dtype != torch.float32 for weight in weights.values()):
        left = None  # what gathering has rounded can't be told from what was trained
        reports.warn("DeepSpeed gave the weights rounded to 16 bits; what that erased of the training is not known")
    save_model(network, trainer.processing_class, partial, config.save_dtype)
    for message in rounding_warnings(plan.method, left, trained, config.save_dtype):
        reports.warn(message)
    dropped = {why: names for why, names in prepared.rows.dropped.items() if names}
    for why, names in dropped.items():
        reports.warn(f"{len(names)} rows were left out ({why.replace('_', ' ')}); training.json names them")
    facts = {
        "config": config.model_dump(mode="json", exclude={"model", "output"})  # paths say whose machine it was
        | {"model": _base_name(plan), "processes": plan.processes},
        "data": plan.data.as_parent().model_dump(mode="json") if isinstance(plan.data, Artifact) else None,
        "base_model": _base_model(plan, network),
        "environment": environment(),
        "lengths": asdict(prepared.rows.lengths),
        "dropped": dropped,
        "weights": {
            "dtype": config.save_dtype,
            "changed_share": changed_share(plan.model, partial),
            "margin_left": left,
        },
        "warnings": reports.warnings,
        "metrics": [_finite(entry) for entry in trainer.state.log_history],
    }
    record = outputs.record_of(plan.identity, facts, summary)
    write_card(partial, record)
    outputs.finish(summary.output, record)


def _check_evaluation(plan: TrainingPlan) -> None:
    if plan.evaluation is not None:
        check_no_shared_prompts(plan.rows(), plan.evaluation_rows())


def _measure(plan: TrainingPlan, output: Path, tell: Tell) -> None:
    """Measure a finished model on held-out pairs, unless it was; training.json and the card get what is found."""
    if plan.is_measured():
        return
    record = outputs.read_record(output)
    rows = plan.evaluation_rows()
    data = plan.evaluation.as_parent().model_dump(mode="json") if isinstance(plan.evaluation, Artifact) else None
    tell(f"measuring on {len(rows):,} held-out pairs")
    found = dict(measure_folder(plan.method, output, plan.model, rows, plan.config))
    record["held_out"] = found | {"data": data, "content_hash": plan.evaluation_hash}
    write_card(output, record)
    outputs.write_record(output, record)
    accuracy = found["accuracy"]
    tell(
        f"held-out accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f}) on "
        f"{accuracy['rows']} pairs of {accuracy['prompts']} prompts"
    )
    if found.get("better_than_length") is False:
        rule = found["length_rule"]
        tell(
            f"warning: {NOT_BETTER}: preferring the {rule['prefers']} side is right in {rule['accuracy']['value']:.3f}"
        )
    for task in found["wrong_way"]:
        tell(f"warning: the model {WRONG_WAY.format(task=task)}: {found['accuracy_by_task'][task]['value']:.3f}")


def _base_model(plan: TrainingPlan, network: Any) -> dict[str, str | None]:
    if Path(plan.model).is_dir():
        return {"name": _base_name(plan), "hash": plan.identity["start_model"]}
    return {"name": _base_name(plan), "revision": getattr(network.config, "_commit_hash", None)}


def _base_name(plan: TrainingPlan) -> str:
    folder = Path(plan.model)
    return folder.resolve().name if folder.is_dir() else str(plan.model)


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
