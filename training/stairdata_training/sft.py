"""Supervised fine-tuning on `structured_cot`: `stairdata train sft --recipe sft`.

The four tags become single tokens, so embeddings and head are trained, also where the rest has adapters. With
`reasoning: false` answers are trained without steps, and the tokenizer gets no tags: untrained, they would only be
something wrong to sample.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer as TrlSftTrainer

from stairdata_training.config import SftConfig
from stairdata_training.models import load_causal_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train
from stairdata_training.tokens import direct_row, sft_row
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
    return train(TrainingPlan("sft", rows, model, output, config), sft_method(config), on_progress)


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


SFT = Method("sft", sft_row, lambda model, _: load_causal_model(model), _trainer, "CAUSAL_LM", tags="added")
DIRECT_SFT = replace(SFT, to_ids=direct_row, tags="unused")


def sft_method(config: SftConfig) -> Method:
    """Return the training on whole rows, or on their final answers alone."""
    return SFT if config.reasoning else DIRECT_SFT
