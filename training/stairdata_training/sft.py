"""Supervised fine-tuning on `structured_cot`: `stairdata train sft --recipe sft`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer as TrlSftTrainer

from stairdata_schemas.rendering import load_tokenizer
from stairdata_training.config import SftConfig
from stairdata_training.cpu import replace_fused_head
from stairdata_training.models import adapter_config, align_config, load_causal_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import OnProgress, TrainerMixin, arguments, tokenised, train
from stairdata_training.tokens import prepare_tokenizer, resize_embeddings, sft_row

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
        TrainingError: a row that can't be trained on as it is, or an output that isn't ours.
        ModelError: no usable model or tokenizer.
    """
    return train(TrainingPlan("sft", rows, model, output, config), sft_trainer, on_progress)


def sft_trainer(rows: Dataset, model: str | Path, config: SftConfig, partial: Path, fingerprint: str) -> Any:
    """Build the trainer; nothing is trained yet."""
    tokenizer = load_tokenizer(model)
    new_ids = prepare_tokenizer(tokenizer)
    ids = tokenised(rows, config, lambda row: sft_row(tokenizer, row, config.max_length), partial, fingerprint)
    network = load_causal_model(model)
    resize_embeddings(network, tokenizer, new_ids)
    align_config(network, tokenizer)
    trainer = SftTrainer(
        model=network,
        args=TrlSftConfig(**arguments(config, partial)),
        train_dataset=ids,
        processing_class=tokenizer,
        peft_config=config.lora and adapter_config(config.lora, network, trains_embeddings=True, task_type="CAUSAL_LM"),
    )
    replace_fused_head(trainer.model)
    return trainer
