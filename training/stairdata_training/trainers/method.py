"""What differs between the three trainings, and the way from rows to a trainer that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stairdata_schemas.rendering import load_tokenizer
from stairdata_training.config import TrainingConfig
from stairdata_training.data.preparing import PreparedRows, Tell, prepare_rows
from stairdata_training.models import adapter_config, align_config, merged
from stairdata_training.processes import Processes
from stairdata_training.sharding import with_weights, without_weights
from stairdata_training.tokens import prepare_tokenizer, require_tags, resize_embeddings

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Method:
    """One of the three trainings."""

    name: str
    """sft, dpo or prm."""
    to_ids: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]
    """Makes the ids of a row, by a tokenizer."""
    load: Callable[[str | Path, Any], Any]
    """Loads the network to train, with 32-bit weights."""
    trainer: Callable[..., Any]
    """Makes a TRL trainer of network, ids, tokenizer, settings, folder and adapters."""
    task_type: str
    """PEFT's name of the task."""
    tags: Literal["added", "required", "unused"] = "required"
    """What becomes of the grammar's tags: SFT adds those that a tokenizer lacks, and trains embeddings and head."""

    def tokenizer(self, model: str | Path) -> tuple[Any, list[int]]:
        """Load the tokenizer to train with, and return the ids that are new in it, too.

        Raises:
            ModelError: no usable tokenizer, or one without the tags where they are required.
        """
        tokenizer = load_tokenizer(model)
        if self.tags == "required":
            require_tags(tokenizer, model)
        return tokenizer, prepare_tokenizer(tokenizer, with_tags=self.tags != "unused")

    def trains_embeddings(self, new_ids: list[int]) -> bool:
        """Tell whether embeddings and head are trained also where the rest has adapters."""
        return self.tags == "added" or (bool(new_ids) and self.tags == "required")


@dataclass(frozen=True)
class Prepared:
    """A trainer, and the rows that it trains on."""

    trainer: Any
    rows: PreparedRows
    adapters: Any
    """PEFT's settings of the adapters, if there are any."""
    skeleton: Any
    """Where weights are sharded, the network before it got adapters, without its weights; else None."""


def prepare_trainer(
    method: Method,
    rows: Dataset,
    model: str | Path,
    config: TrainingConfig,
    folder: Path,
    *,
    processes: Processes | None = None,
    tell: Tell = lambda _: None,
) -> Prepared:
    """Make the ids, load the model, and build the trainer; nothing is trained yet.

    Args:
        method: which training.
        rows: with the columns of the method's kind.
        model: to start from.
        config: settings of the method.
        folder: for ids and checkpoints.
        processes: those of the training.
        tell: is told the lengths of the rows, before weights are loaded.

    Raises:
        TrainingError: rows that can't be trained on.
        ModelError: no usable model, or one without the grammar's tags where only SFT adds them.
    """
    processes = processes or Processes()
    tokenizer, new_ids = method.tokenizer(model)
    rows_per_step = config.batch_size * config.gradient_accumulation * processes.count

    def prepare() -> PreparedRows:
        return prepare_rows(
            rows, config, rows_per_step, lambda row: method.to_ids(tokenizer, row), folder / "rows", tell
        )

    processes.first_does(lambda: prepare() and None)
    prepared = prepare()
    network = method.load(model, config)
    resize_embeddings(network, tokenizer, new_ids)
    align_config(network, tokenizer)
    adapters = config.lora and adapter_config(
        config.lora, network, trains_embeddings=method.trains_embeddings(new_ids), task_type=method.task_type
    )
    skeleton = without_weights(network) if processes.sharding else None
    trainer = method.trainer(network, prepared.ids, tokenizer, config, folder, adapters)
    return Prepared(trainer, prepared, adapters, skeleton)


def trained_network(prepared: Prepared, weights: Mapping[str, Any]) -> Any:
    """Return the network as it was trained, adapters merged; one whose weights were sharded is put together from them.

    Args:
        prepared: whose trainer has trained.
        weights: where they were sharded, all of them, gathered.
    """
    trainer, network = prepared.trainer, prepared.skeleton
    if network is None:
        return merged(trainer.accelerator.unwrap_model(trainer.model))
    if prepared.adapters:
        from peft import get_peft_model

        network = get_peft_model(network, prepared.adapters)
    network = merged(with_weights(network, weights)).to(trainer.args.device)
    if network.get_output_embeddings() is not None:
        from trl.trainer.utils import add_fused_lm_head

        from stairdata_training.trainers.cpu import replace_fused_head

        add_fused_lm_head(network)
        replace_fused_head(network)
    return network
