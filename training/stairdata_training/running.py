"""What the three trainers have in common: arguments, order of rows, progress, and the run itself."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from stairdata_schemas.errors import TrainingError
from stairdata_training import output as outputs
from stairdata_training.config import TrainingConfig
from stairdata_training.cpu import keep_freed_memory
from stairdata_training.models import save_model, uses_bf16
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan

if TYPE_CHECKING:
    from datasets import Dataset

OnProgress = Callable[[int, int, dict[str, float]], None]
BuildTrainer = Callable[["Dataset", str | Path, Any, Path, str], Any]
_BATCHES_SORTED_TOGETHER = 50


class LengthBatches(Sampler[int]):
    """Rows in batches of similar length, the batches in random order; the same order for the same epoch.

    Transformers' own grouping draws from the global random state, so a resumed run would see another order,
    and it goes through each group from long to short.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}/{self.epoch}")  # noqa: S311
        order = generator.sample(range(len(self.lengths)), len(self.lengths))
        group = self.batch_size * _BATCHES_SORTED_TOGETHER
        order = [
            index
            for start in range(0, len(order), group)
            for index in sorted(order[start : start + group], key=self.lengths.__getitem__)
        ]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        short = batches.pop() if len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        return iter([index for batch in [*batches, short] for index in batch])


class TrainerMixin:
    """Goes in front of a TRL trainer."""

    args: Any
    train_dataset: Any

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report each run to the Hub."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card into checkpoints."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Take the rows as they are: `tokens` made the ids."""
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBatches:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LengthBatches(rows["length"][:], self.args.train_batch_size, self.args.seed)


class _Progress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_progress: OnProgress | None) -> None:
        self.on_progress = on_progress

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        state.save_steps = args.save_steps  # a resumed state brings that of the run that was killed

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the finished model is saved at once; a checkpoint costs four times its size

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        if self.on_progress is not None and "loss" in logs:
            self.on_progress(state.global_step, state.max_steps, dict(logs))


def arguments(config: TrainingConfig, partial: Path) -> dict[str, Any]:
    """Translate our settings into TRL's."""
    import torch

    return {
        "output_dir": str(partial / "checkpoints"),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "warmup_steps": config.warmup_ratio if config.warmup_ratio < 1 else 0.999,
        "lr_scheduler_type": config.scheduler,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "max_length": None,  # `tokens` has refused what is too long
        "bf16": uses_bf16(config.precision),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,  # the sampler reads the lengths
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def tokenised(
    rows: Dataset, config: TrainingConfig, to_ids: Callable[[Any], Any], partial: Path, fingerprint: str
) -> Dataset:
    """Return the ids of the rows (a seeded sample if so configured) in seeded order, kept in a file.

    The file is memory-mapped and goes with the partial folder, so nothing stays in a cache of the user's.

    Raises:
        TrainingError: there are no rows, or one can't be trained on.
    """
    if len(rows) == 0:
        raise TrainingError("there are no rows to train on")
    count = min(config.max_rows or len(rows), len(rows))
    order = random.Random(config.seed).sample(range(len(rows)), count)  # noqa: S311
    folder = partial / "tokens"
    folder.mkdir(exist_ok=True)
    return rows.select(order, keep_in_memory=True).map(
        to_ids,
        remove_columns=rows.column_names,
        load_from_cache_file=False,
        cache_file_name=str(folder / "ids.arrow"),
        new_fingerprint=fingerprint[:16],
    )


def train(plan: TrainingPlan, build: BuildTrainer, on_progress: OnProgress | None) -> TrainingSummary:
    """Run a training to a finished folder, or return the summary of the one that is there.

    Args:
        plan: what to train.
        build: makes the trainer of rows, model, settings, partial folder and fingerprint.
        on_progress: called after each step with step, number of steps, and metrics.
    """
    check_one_device()
    keep_freed_memory()
    output, fingerprint = plan.output.absolute(), plan.fingerprint
    with outputs.locked(output), quiet():
        done = outputs.finished(output, fingerprint)
        if done is None:
            outputs.publish_finished(output)
            done = outputs.finished(output, fingerprint)
        if done is not None:
            return done
        partial = outputs.start(output, fingerprint)
        with outputs.failed_writes_named(partial):
            trainer = build(plan.rows(), plan.model, plan.config, partial, fingerprint)
            summary = _run(trainer, plan.method, output, partial, on_progress)
            save_model(trainer.model, trainer.processing_class, partial)
        settings = plan.config.model_dump(mode="json") | {"model": str(plan.model)}
        return outputs.finish(output, fingerprint, settings, summary)


def _run(trainer: Any, method: str, output: Path, partial: Path, on_progress: OnProgress | None) -> TrainingSummary:
    """Train, from the newest whole checkpoint if there is one."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(on_progress))
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


def check_one_device() -> None:
    """Refuse what is not supported: several processes, or several visible GPUs.

    Raises:
        TrainingError: either is the case.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("training runs in one process; start `stairdata train` without a launcher")
    if torch.cuda.device_count() > 1:
        raise TrainingError(
            f"training uses one GPU and {torch.cuda.device_count()} are visible; set CUDA_VISIBLE_DEVICES=0"
        )


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
