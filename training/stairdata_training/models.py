"""Loading and saving models: 32-bit weights in training, no remote code, safetensors only."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stairdata_schemas.errors import ModelError, TrainingError
from stairdata_schemas.rendering import check_reward_model, end_of_turn
from stairdata_training.config import LoraConfig, Precision, SaveDtype


def uses_bf16(precision: Precision) -> bool:
    """Decide whether to compute in bf16 here.

    Raises:
        TrainingError: bf16 is asked for and the GPU has none.
    """
    import torch

    if precision == "fp32":
        return False
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    if precision == "bf16" and torch.cuda.is_available() and not native:
        raise TrainingError("this GPU has no bf16 arithmetic; set precision to auto or fp32")
    return precision == "bf16" or native


def scoring_dtype() -> SaveDtype:
    """Return the number format in which a reward model computes here: 32 bits on a CPU, bfloat16 on a GPU."""
    if find_spec("torch") is None:
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def load_causal_model(model: str | Path) -> Any:
    """Load a language model with 32-bit weights.

    Raises:
        ModelError: there is none.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            str(model), dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise not_loaded(model, error) from error


def load_reward_model(model: str | Path, *, head_seed: int | None = None) -> Any:
    """Load a one-label sequence classifier with 32-bit weights.

    With `head_seed` a language model's head is replaced by a fresh linear one; without it the model has to be
    a reward model already.

    Raises:
        ModelError: there is no model, or one without a reward head where it has to have one, or with several labels.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    if head_seed is not None:
        set_seed(head_seed)
    elif Path(model).is_dir():
        check_reward_model(Path(model))
    expected = suppress_seqcls_warning() if head_seed is not None else nullcontext()  # it also hides missing keys
    try:
        with expected:
            network, report = AutoModelForSequenceClassification.from_pretrained(
                str(model),
                num_labels=1,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # the last of a head of another size
        raise not_loaded(model, error) from error
    if head_seed is None and report["missing_keys"]:
        raise ModelError(
            f"{str(model)!r} is not a reward model: it has no {', '.join(sorted(report['missing_keys']))}; "
            "train one with `stairdata train prm`"
        )
    return network


def align_config(network: Any, tokenizer: Any) -> None:
    """Tell the model's configuration about the tokenizer's pad token and the end of a turn."""
    end = end_of_turn(tokenizer).token_id
    network.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(network, "generation_config", None)
    if generation is None:
        return
    generation.pad_token_id = tokenizer.pad_token_id
    known = generation.eos_token_id
    others = known if isinstance(known, list) else [known]
    generation.eos_token_id = [end, *(token for token in others if token not in {end, None})]


def adapter_config(lora: LoraConfig, network: Any, *, trains_embeddings: bool, task_type: str) -> Any:
    """Translate our LoRA settings into PEFT's.

    Args:
        lora: our settings.
        network: the model, whose layer names are looked up.
        trains_embeddings: train embeddings and head in full, as new tokens need.
        task_type: PEFT's name of the task, CAUSAL_LM or SEQ_CLS.
    """
    from peft import LoraConfig as PeftLoraConfig

    full = _embedding_names(network) if trains_embeddings else []
    tied = bool(full) and network.get_output_embeddings() is not None and network.config.tie_word_embeddings
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=full or None,
        ensure_weight_tying=tied,
        task_type=task_type,
    )


def merged(network: Any) -> Any:
    """Return a model without adapters: they are added to its weights."""
    return network.merge_and_unload() if hasattr(network, "merge_and_unload") else network


def not_finite(network: Any) -> str | None:
    """Return the name of a weight that holds infinite values or none at all; None where all are finite."""
    import torch

    return next(
        (name for name, weight in network.named_parameters() if not torch.isfinite(weight.detach()).all()), None
    )


def save_model(network: Any, tokenizer: Any, folder: Path, dtype: SaveDtype) -> None:
    """Write a model, adapters merged, with its tokenizer.

    Raises:
        TrainingError: a weight is not finite.
    """
    import torch

    network = network.to(getattr(torch, dtype))
    name = not_finite(network)
    if name is not None:
        raise TrainingError(
            f"the weight {name} holds values that are not finite, so nothing is published; lower learning_rate and "
            "start over with --fresh"
        )
    network.config.use_cache = True  # TRL switches it off for training
    network.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))


def _embedding_names(network: Any) -> list[str]:
    layers = {id(layer) for layer in (network.get_input_embeddings(), network.get_output_embeddings()) if layer}
    return [name.rpartition(".")[2] for name, layer in network.named_modules() if id(layer) in layers]


def not_loaded(model: str | Path, error: Exception) -> ModelError:
    """Return the error of a model that a library could not load."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"no model can be loaded from {str(model)!r}: {reason}; give a folder with config.json and "
        "*.safetensors, or a Hub id that is reachable"
    )
