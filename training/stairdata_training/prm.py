"""The process reward model, from `prm_pairs`: `stairdata train prm --recipe prm`.

A linear head on the last token replaces the language-model head; the loss is
`-log sigmoid(r(x, chosen) - r(x, rejected))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from stairdata_training.config import PrmConfig
from stairdata_training.models import load_reward_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train
from stairdata_training.tokens import prm_row
from stairdata_training.trainers.method import Method
from stairdata_training.trainers.mixin import OnProgress, TrainerMixin, arguments

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
    return train(TrainingPlan("prm", rows, model, output, config), PRM, on_progress)


def _trainer(network: Any, ids: Dataset, tokenizer: Any, config: PrmConfig, folder: Path, adapters: Any) -> Any:
    return PrmTrainer(
        model=network,
        args=TrlRewardConfig(**arguments(config, folder)),
        train_dataset=ids,
        processing_class=tokenizer,
        peft_config=adapters,
    )


PRM = Method("prm", prm_row, lambda model, config: load_reward_model(model, head_seed=config.seed), _trainer, "SEQ_CLS")
