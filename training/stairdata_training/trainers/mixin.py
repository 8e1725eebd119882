"""What goes around each TRL trainer: its arguments, the order of rows, and what is watched in every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainerCallback

from stairdata_schemas.errors import TrainingError
from stairdata_training.config import TrainingConfig
from stairdata_training.data.batches import StepSampler
from stairdata_training.models import not_finite, uses_bf16

OnProgress = Callable[[int, int, dict[str, float]], None]


class TrainerMixin:
    """Goes in front of a TRL trainer."""

    args: Any
    accelerator: Any
    is_fsdp_enabled: bool
    train_dataset: Any
    step_sampler: StepSampler

    def create_accelerator_and_postprocess(self) -> None:
        """Let FSDP compute in bf16 alone: accelerate would round outputs and summed gradients, too.

        Outputs are log-probabilities of tokens, whose sums in bf16 are off by whole nats.
        """
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        if self.is_fsdp_enabled and self.args.bf16:
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report each run to the Hub."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card into checkpoints."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Take the rows as they are: `tokens` made the ids."""
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        rows_per_pass = self.args.train_batch_size * self.args.world_size
        rows_per_step = rows_per_pass * self.args.gradient_accumulation_steps
        self.step_sampler = StepSampler(rows["length"][:], rows_per_step, rows_per_pass, self.args.seed)
        return self.step_sampler


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """Reports each step, and stops a training whose numbers have left the finite.

    Args:
        method: sft, dpo or prm.
        trainer: with a `StepSampler`.
        on_progress: called after each step with step, number of steps, and metrics.
    """

    def __init__(self, method: str, trainer: Any, on_progress: OnProgress | None) -> None:
        self.method, self.trainer, self.on_progress = method, trainer, on_progress

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        state.save_steps = args.save_steps  # a resumed state brings that of the run that was killed

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        # accelerate passes the epoch on to no sampler inside its SkipBatchSampler or BatchSamplerShard
        sampler = self.trainer.step_sampler
        sampler.set_epoch(state.global_step // sampler.steps_per_epoch)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the finished model is saved at once; a checkpoint costs four times its size

    def on_log(self, _args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        for name, what in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
            value = logs.get(name)
            if value is not None and not math.isfinite(value):  # told before the step's checkpoint is written
                raise TrainingError(self._diverged(state.global_step, f"{what} is {float(value)}, which is"))
        found = gather_object([not_finite(model)]) if control.should_save else []  # a process may hold a part alone
        weight = next(filter(None, found), None)
        if weight is not None:
            raise TrainingError(self._diverged(state.global_step, f"the weight {weight} holds values that are"))
        if self.on_progress is not None and "loss" in logs:
            self.on_progress(state.global_step, state.max_steps, dict(logs))

    def _diverged(self, step: int, what: str) -> str:
        rate = self.trainer.args.learning_rate
        return (
            f"step {step} of train {self.method}: {what} not finite. Nothing is published, and checkpoints of earlier "
            f"steps are kept; lower {self.method}.learning_rate ({rate:g}) and start over with --fresh"
        )


def arguments(config: TrainingConfig, folder: Path) -> dict[str, Any]:
    """Translate our settings into TRL's."""
    import torch

    return {
        "output_dir": str(folder / "checkpoints"),
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
        "max_length": None,  # what is too long was refused or left out
        "bf16": uses_bf16(config.precision),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log the mean of earlier losses in the place of one that is nan
        "report_to": config.report_to,
        "push_to_hub": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,  # the sampler reads the lengths
        "ddp_find_unused_parameters": False,  # there are none, and looking for them takes time in every step
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
