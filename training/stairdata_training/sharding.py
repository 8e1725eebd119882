"""Weights that lie in parts on the processes of a training, as FSDP2 and DeepSpeed's ZeRO-3 keep them."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stairdata_schemas.errors import TrainingError, quote

Sharding = Literal["FSDP", "DeepSpeed"]
_SWITCHES: dict[Sharding, str] = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
_REQUIRED: dict[Sharding, dict[str, tuple[str, str, str]]] = {
    "FSDP": {  # environment variable: accelerate's default, what it has to be, its name in a configuration
        "FSDP_VERSION": ("1", "2", "fsdp_version"),
        # sharded checkpoints are read with pickle, which runs what a file says
        "FSDP_STATE_DICT_TYPE": ("SHARDED_STATE_DICT", "FULL_STATE_DICT", "fsdp_state_dict_type"),
        # the reference pass of DPO would read empty weights in all processes but the first
        "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "false", "fsdp_cpu_ram_efficient_loading"),
        # gradient_checkpointing of the recipe does this
        "FSDP_ACTIVATION_CHECKPOINTING": ("false", "false", "fsdp_activation_checkpointing"),
    },
    "DeepSpeed": {
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("2", "3", "zero_stage"),
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": ("false", "true", "zero3_save_16bit_model"),
    },
}
_PACKAGED = {"FSDP": "fsdp2", "DeepSpeed": "zero3"}
_WEIGHTS_OF_CHECKPOINT: dict[Sharding, str] = {"FSDP": "pytorch_model_fsdp.bin", "DeepSpeed": "latest"}


def sharding_here() -> Sharding | None:
    """Return what accelerate was told to shard weights by; None where each process holds all of them."""
    return next((name for name, key in _SWITCHES.items() if os.environ.get(key, "").lower() == "true"), None)


def check_sharding(processes: int) -> None:
    """Check that weights are sharded in a way that trainings can deal with.

    Raises:
        TrainingError: a setting stands in the way, or there is one process alone.
    """
    sharding = sharding_here()
    if sharding is None:
        return
    if processes == 1:
        raise TrainingError(
            f"{sharding} is switched on and there is one process, over which nothing can be sharded; start several "
            f"(accelerate launch --num_processes N), or leave {_SWITCHES[sharding]} unset"
        )
    if sharding == "DeepSpeed" and find_spec("deepspeed") is None:
        raise TrainingError("DeepSpeed is switched on and not installed; run pip install deepspeed, or use FSDP2")
    wrong = [
        f"{name} has to be {wanted}, not {quote(found)}"
        for key, (default, wanted, name) in _REQUIRED[sharding].items()
        if (found := os.environ.get(key, default)).lower() != wanted.lower()
    ]
    if wrong:
        raise TrainingError(
            f"{sharding} is not set up for trainings: {'; '.join(wrong)}. `stairdata train --accelerate-config "
            f"{_PACKAGED[sharding]}` names a configuration that is"
        )


def check_checkpoint(checkpoint: Path, sharding: Sharding | None) -> None:
    """Check that a checkpoint was written in the way in which it would be read.

    Raises:
        TrainingError: its training sharded weights in another way.
    """
    wrote = next((name for name, file in _WEIGHTS_OF_CHECKPOINT.items() if (checkpoint / file).exists()), None)
    if wrote != sharding:
        raise TrainingError(
            f"{checkpoint} was written {_words(wrote)}, and this training runs {_words(sharding)}; start it as it was "
            "started before, or start over with --fresh"
        )


def _words(sharding: Sharding | None) -> str:
    return f"under {sharding}" if sharding else "without sharding"


def sharing_weights(network: Any) -> Any:
    """Return a copy of a network's modules that takes no memory: its weights lie where those of the network lie."""
    from torch.nn import Parameter

    return with_weights(network, {name: Parameter(each.data, False) for name, each in network.named_parameters()})


def without_weights(network: Any) -> Any:
    """Return a copy of a network's modules whose weights hold nothing."""
    from torch.nn import Parameter

    return with_weights(
        network, {name: Parameter(each.data.to("meta"), False) for name, each in network.named_parameters()}
    )


def with_weights(network: Any, weights: Mapping[str, Any]) -> Any:
    """Return a copy of a network's modules that holds other weights, tied as they are in the network.

    Args:
        network: whose weights may hold nothing.
        weights: parameters by the names that they have in the network; more than those are no harm.
    """
    return copy.deepcopy(network, {id(each): weights[name] for name, each in network.named_parameters()})


def gathered(trainer: Any) -> dict[str, Any]:
    """Return all weights of a trained model, in the first process; all have to call it at the same time.

    Returns:
        Plain parameters on the CPU, by name; in other processes they may be missing. FSDP gathers the 32-bit weights,
        DeepSpeed those that it computes with.
    """
    from torch.nn import Parameter

    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: Parameter(each, False) for name, each in state.items() if each.is_floating_point()}
