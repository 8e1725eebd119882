"""The process reward model, from `prm_pairs`: `stairdata train prm --recipe prm`.

A linear head on the last token replaces the language-model head; the loss is
`-log sigmoid(r(x, chosen) - r(x, rejected))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from stairdata_schemas.rendering import load_tokenizer
from stairdata_training.config import PrmConfig
from stairdata_training.models import adapter_config, align_config, load_reward_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import OnProgress, TrainerMixin, arguments, tokenised, train
from stairdata_training.tokens import prepare_tokenizer, prm_row, resize_embeddings

if TYPE_CHECKING:
    from datasets import Dataset

    from stairdata_schemas.artifacts import Artifact


class PrmTrainer(TrainerMixin, TrlRewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer on ready-made ids."""


def train_prm(
    rows: Artifact | Dataset,
    model: str | Path,
    output: Path,
    config: PrmConfig,
    *,
    on_progress: OnProgress | None = None,
) -> TrainingSummary:
    """Train a reward model of partial and whole answers (paper, section 3.4), starting from the last actor.

    Args and errors are those of `train_sft`, rows are of the kind `prm_pairs`.
    """
    return train(TrainingPlan("prm", rows, model, output, config), prm_trainer, on_progress)


def prm_trainer(rows: Dataset, model: str | Path, config: PrmConfig, partial: Path, fingerprint: str) -> Any:
    """Build the trainer; nothing is trained yet."""
    tokenizer = load_tokenizer(model)
    new_ids = prepare_tokenizer(tokenizer)
    ids = tokenised(rows, config, lambda row: prm_row(tokenizer, row, config.max_length), partial, fingerprint)
    network = load_reward_model(model, head_seed=config.seed)
    resize_embeddings(network, tokenizer, new_ids)
    align_config(network, tokenizer)
    return PrmTrainer(
        model=network,
        args=TrlRewardConfig(**arguments(config, partial)),
        train_dataset=ids,
        processing_class=tokenizer,
        peft_config=config.lora
        and adapter_config(config.lora, network, trains_embeddings=bool(new_ids), task_type="SEQ_CLS"),
    )
