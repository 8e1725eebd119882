"""What a training would take: parameters, steps, tokens and memory, without loading a weight."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stairdata_training.config import TrainingConfig
from stairdata_training.data.batches import rows_read
from stairdata_training.data.lengths import LengthReport
from stairdata_training.data.preparing import prepare_rows
from stairdata_training.models import adapter_config, uses_bf16
from stairdata_training.plan import TrainingPlan
from stairdata_training.sharding import sharding_here
from stairdata_training.tokens import padded_vocabulary
from stairdata_training.trainers.method import Method

_GB = 1e9
_BYTES_OF_STATE = 16  # of a trained 32-bit weight: itself, its gradient, and AdamW's two moments
_BYTES_OF_FROZEN = 4
_ACTIVATIONS_OF_LAYER = 34  # values kept of a layer for each token and unit of width (arXiv 2205.05198, section 4.1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A training before it is run. Memory is that of one process."""

    parameters: int
    trained_parameters: int
    steps: int
    tokens: int
    """Tokens that the model reads in all epochs, without padding."""
    memory_gb: float
    """Weights, gradients, moments of AdamW, and activations of the longest batch; a rule of thumb.

    Under FSDP2 or ZeRO-3 a process has its share of the first three, and room for two layers or for the head, whichever
    is more.
    """
    lengths: LengthReport
    dropped: dict[str, int]
    """Rows that would be left out, by why."""

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def estimate(plan: TrainingPlan, method: Method) -> Estimate:
    """Work out what a training would take: its rows are made into ids, of its model only the configuration is read.

    Raises:
        TrainingError: rows that can't be trained on.
        ModelError: no usable tokenizer or configuration, or no tags where only SFT adds them.
    """
    config = plan.config
    tokenizer, new_ids = method.tokenizer(plan.model)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_rows(
            plan.rows(), config, plan.rows_per_step, lambda row: method.to_ids(tokenizer, row), Path(folder),
            lambda _: None,
        )  # fmt: skip
        rows = len(prepared.ids)
    network = _empty_network(plan, method, tokenizer)
    parameters = sum(weight.numel() for weight in network.parameters())
    trained = _trained_parameters(network, config, method, trains_embeddings=method.trains_embeddings(new_ids))
    steps_per_epoch = -(-rows // plan.rows_per_step)
    steps = config.max_steps or max(1, -int(-(steps_per_epoch * config.epochs) // 1))
    read = rows_read(rows, plan.rows_per_step, config.batch_size * plan.processes)
    tokens = round(prepared.lengths.tokens / prepared.lengths.rows * read / steps_per_epoch * steps)
    memory = _BYTES_OF_STATE * trained + _BYTES_OF_FROZEN * (parameters - min(trained, parameters))
    if sharding_here() is not None:
        memory = memory / plan.processes + _BYTES_OF_FROZEN * _gathered(network)
    memory += _activations(network.config, config, method, min(prepared.lengths.longest, config.max_length))
    dropped = {why: len(names) for why, names in prepared.dropped.items() if names}
    return Estimate(parameters, trained, steps, tokens, round(memory / _GB, 2), prepared.lengths, dropped)


def _empty_network(plan: TrainingPlan, method: Method, tokenizer: Any) -> Any:
    """Build the network without memory for its weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from stairdata_training.models import not_loaded

    try:
        settings = AutoConfig.from_pretrained(str(plan.model), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise not_loaded(plan.model, error) from error
    if len(tokenizer) > settings.get_text_config().vocab_size:
        settings.get_text_config().vocab_size = padded_vocabulary(len(tokenizer))
    if method.task_type == "SEQ_CLS":
        settings.num_labels = 1
    build = AutoModelForSequenceClassification if method.task_type == "SEQ_CLS" else AutoModelForCausalLM
    with init_empty_weights():
        network = build.from_config(settings, trust_remote_code=False)
    network.tie_weights()
    return network


def _trained_parameters(network: Any, config: TrainingConfig, method: Method, *, trains_embeddings: bool) -> int:
    if config.lora is not None:
        from accelerate import init_empty_weights
        from peft import get_peft_model

        adapters = adapter_config(config.lora, network, trains_embeddings=trains_embeddings, task_type=method.task_type)
        with init_empty_weights():
            network = get_peft_model(network, adapters)
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def _gathered(network: Any) -> int:
    """Return how many weights a process gathers at a time: those of a layer and of the next one, or of the head."""
    sizes = [
        sum(weight.numel() for weight in layer.parameters())
        for layer in network.modules()
        if type(layer).__name__ in (network._no_split_modules or ())
    ]
    embeddings = int(network.get_input_embeddings().weight.numel())
    return max(2 * max(sizes, default=0), embeddings)


def _activations(shape: Any, config: TrainingConfig, method: Method, longest: int) -> float:
    shape = shape.get_text_config()
    tokens = config.batch_size * longest * (1 if method.name == "sft" else 2)
    size = 2 if uses_bf16(config.precision) else 4
    kept = 1 if config.gradient_checkpointing else _ACTIVATIONS_OF_LAYER / 2
    layers = tokens * shape.hidden_size * size * (kept * shape.num_hidden_layers + _ACTIVATIONS_OF_LAYER / 2)
    logits = 0 if method.name == "prm" else 2 * 4 * tokens * shape.vocab_size
    return float(layers + logits)
