"""Step-level DPO on `preference_pairs`: `stairdata train dpo --recipe dpo`.

The loss compares single steps: the shared prefix is part of the prompt, and only what follows it counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import DPOConfig as TrlDpoConfig
from trl import DPOTrainer as TrlDpoTrainer

from stairdata_training.config import DpoConfig
from stairdata_training.data.reference_logps import kept_reference
from stairdata_training.models import load_causal_model
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train
from stairdata_training.sharding import sharding_here, sharing_weights
from stairdata_training.tokens import dpo_row
from stairdata_training.trainers.cpu import replace_fused_head
from stairdata_training.trainers.method import Method
from stairdata_training.trainers.mixin import OnProgress, TrainerMixin, arguments

if TYPE_CHECKING:
    from datasets import Dataset

    from stairdata_schemas.artifacts import Artifact


class DpoTrainer(TrainerMixin, TrlDpoTrainer):  # type: ignore[misc]
    """TRL's trainer on ready-made ids.

    Log-probabilities of the reference are kept beside the output folder, so that another beta or learning rate on the
    same pairs need not compute them again. Under FSDP TRL would load the reference from its path; it gets the weights
    of the policy, which are the same before training, and lets go of them after the pass.
    """

    ref_model: Any

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Any:
        for network in filter(None, (self.model, self.ref_model)):  # so that both are computed in the same way
            replace_fused_head(network)
        whole = kept_reference(
            dataset,
            Path(self.args.output_dir).parent.parent,
            [self._precompute_model_hash, str(self.args.bf16), str(batch_size * self.args.world_size)],
            self.accelerator,
            lambda: super(DpoTrainer, self)._precompute_ref_logps(dataset, name, batch_size),
        )
        self.ref_model = None
        return whole


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
    return train(TrainingPlan("dpo", rows, model, output, config), DPO, on_progress)


def _trainer(network: Any, ids: Dataset, tokenizer: Any, config: DpoConfig, folder: Path, adapters: Any) -> Any:
    likelihood = bool(config.sft_weight)
    return DpoTrainer(
        model=network,
        ref_model=sharing_weights(network) if sharding_here() == "FSDP" else None,
        args=TrlDpoConfig(
            **arguments(config, folder),
            beta=config.beta,
            loss_type=[config.loss, "sft"] if likelihood else [config.loss],
            loss_weights=[1.0, config.sft_weight] if likelihood else None,
            label_smoothing=config.label_smoothing,
            precompute_ref_log_probs=True,
        ),
        train_dataset=ids,
        processing_class=tokenizer,
        peft_config=adapters,
    )


DPO = Method("dpo", dpo_row, lambda model, _: load_causal_model(model), _trainer, "CAUSAL_LM")
