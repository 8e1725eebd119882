"""Step-level DPO on `preference_pairs`: `stairdata train dpo --recipe dpo`.

The loss compares single steps: the shared prefix is part of the prompt, and only what follows it counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import DPOConfig as TrlDpoConfig
from trl import DPOTrainer as TrlDpoTrainer

from stairdata_schemas.rendering import load_tokenizer
from stairdata_training.config import DpoConfig
from stairdata_training.cpu import replace_fused_head
from stairdata_training.models import adapter_config, align_config, load_causal_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import OnProgress, TrainerMixin, arguments, tokenised, train
from stairdata_training.tokens import dpo_row, prepare_tokenizer, resize_embeddings

if TYPE_CHECKING:
    from datasets import Dataset

    from stairdata_schemas.artifacts import Artifact


class DpoTrainer(TrainerMixin, TrlDpoTrainer):  # type: ignore[misc]
    """TRL's trainer on ready-made ids."""

    def _precompute_ref_logps(self, *args: Any) -> Any:
        replace_fused_head(self.model)  # now, so that policy and reference are computed in the same way
        return super()._precompute_ref_logps(*args)


def train_dpo(
    rows: Artifact | Dataset,
    model: str | Path,
    output: Path,
    config: DpoConfig,
    *,
    on_progress: OnProgress | None = None,
) -> TrainingSummary:
    """Train actor k into actor k+1 on pairs of steps (paper, section 3.3); the reference is actor k.

    Args and errors are those of `train_sft`, rows are of the kind `preference_pairs`.
    """
    return train(TrainingPlan("dpo", rows, model, output, config), dpo_trainer, on_progress)


def dpo_trainer(rows: Dataset, model: str | Path, config: DpoConfig, partial: Path, fingerprint: str) -> Any:
    """Build the trainer, which computes the reference log-probabilities; nothing is trained yet."""
    tokenizer = load_tokenizer(model)
    new_ids = prepare_tokenizer(tokenizer)
    ids = tokenised(rows, config, lambda row: dpo_row(tokenizer, row, config.max_length), partial, fingerprint)
    network = load_causal_model(model)
    resize_embeddings(network, tokenizer, new_ids)
    align_config(network, tokenizer)
    return DpoTrainer(
        model=network,
        args=TrlDpoConfig(
            **arguments(config, partial), beta=config.beta, loss_type=["sigmoid"], precompute_ref_log_probs=True
        ),
        train_dataset=ids,
        processing_class=tokenizer,
        peft_config=config.lora
        and adapter_config(config.lora, network, trains_embeddings=bool(new_ids), task_type="CAUSAL_LM"),
    )
