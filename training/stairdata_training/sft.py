"""Supervised fine-tuning on `structured_cot`: `stairdata train sft --recipe sft`.

The four tags become single tokens, so embeddings and head are trained, also where the rest has adapters.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer as TrlSftTrainer

from stairdata_training.config import SftConfig
from stairdata_training.models import load_causal_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train
from stairdata_training.tokens import sft_row
from stairdata_training.trainers.cpu import replace_fused_head
from stairdata_training.trainers.method import Method
from stairdata_training.trainers.mixin import OnProgress, TrainerMixin, arguments

if TYPE_CHECKING:
    from datasets import Dataset

    from stairdata_schemas.artifacts import Artifact


class SftTrainer(TrainerMixin, TrlSftTrainer):  # type: ignore[misc]
    """TRL's trainer on ready-made ids."""


def train_sft(
    rows: Artifact | Dataset,
    model: str | Path,
    output: Path,
    config: SftConfig,
    *,
    on_progress: OnProgress | None = None,
) -> TrainingSummary:
    """Fine-tune a chat model on structured reasoning, the four tags added as tokens.

    A finished output of the same rows, model and settings is returned as it is, and a killed run of the same goes on.

    Args:
        rows: an artifact of the kind `structured_cot`, recognised by its content hash as on the command line, or a
            dataset with its columns, recognised by a hash of its rows.
        model: model folder or Hub id to start from.
        output: folder of the finished model; it appears only when whole.
        config: settings.
        on_progress: called after each step with step, number of steps, and metrics.

    Raises:
        TrainingError: a row that can't be trained on as it is, a loss that is not finite, or an output folder that
            holds something else.
        ModelError: no usable model or tokenizer.
    """
    return train(TrainingPlan("sft", rows, model, output, config), SFT, on_progress)


def _trainer(network: Any, ids: Dataset, tokenizer: Any, config: SftConfig, folder: Path, adapters: Any) -> Any:
    trainer = SftTrainer(
        model=network,
        args=TrlSftConfig(**arguments(config, folder)),
        train_dataset=ids,
        processing_class=tokenizer,
        peft_config=adapters,
    )
    replace_fused_head(trainer.model)
    return trainer


SFT = Method("sft", sft_row, lambda model, _: load_causal_model(model), _trainer, "CAUSAL_LM")
