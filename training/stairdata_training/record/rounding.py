"""What of a training is left on disk: the start is close, and bfloat16 has 8 bits for the difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PAIRS_MEASURED = 64
LEAST_MARGIN_LEFT = 0.9
MOST_CHOSEN_LOSS = 0.2


@dataclass(frozen=True, slots=True)
class Margins:
    """Means over the first pairs of a training."""

    margin: float
    """Of DPO log pi/ref(chosen) - log pi/ref(rejected), without beta; of a PRM r(chosen) - r(rejected)."""
    chosen: float | None = None
    """Log-probability of the chosen texts; None of a PRM."""
    chosen_at_start: float | None = None


def measure_margins(method: str, trainer: Any, network: Any) -> Margins | None:
    """Measure the margins of up to 64 training pairs; None for SFT, which has no pairs.

    Args:
        method: sft, dpo or prm.
        trainer: that has trained.
        network: as it is at the moment, adapters merged.
    """
    import torch

    if method == "sft":
        return None
    network.eval()
    parts: list[list[float]] = [[], [], []]
    with torch.inference_mode(), trainer.accelerator.autocast():
        for batch in _batches(trainer):
            if method == "prm":
                chosen, rejected = network(**batch, use_cache=False).logits.squeeze(-1).float().chunk(2)
                values = (chosen - rejected, None, None)
            else:
                first, second = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
                chosen, rejected = _log_probabilities(network, batch).chunk(2)
                values = ((chosen - first) - (rejected - second), chosen, first)
            for part, value in zip(parts, values, strict=True):
                part.extend([] if value is None else value.float().tolist())
    means = [sum(part) / len(part) if part else None for part in parts]
    assert means[0] is not None, "a training has pairs"
    return Margins(means[0], means[1], means[2])


def _batches(trainer: Any) -> Iterator[dict[str, Any]]:
    rows = trainer.train_dataset
    size = trainer.args.per_device_train_batch_size
    for start in range(0, min(len(rows), _PAIRS_MEASURED), size):
        batch = trainer.data_collator([rows[index] for index in range(start, min(len(rows), start + size))])
        yield {name: value.to(trainer.args.device) for name, value in batch.items()}


def _log_probabilities(network: Any, batch: dict[str, Any]) -> Any:
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    return network(**inputs, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)


def round_weights(network: Any, dtype: Any) -> None:
    """Give the weights the values that they have in a dtype, kept in their own."""
    import torch

    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.to(dtype).to(weight.dtype))


def margin_left(trained: Margins | None, rounded: Margins | None) -> float | None:
    """Return the share of the mean margin that is left after rounding; None where there was none."""
    if trained is None or rounded is None or abs(trained.margin) < 1e-6:
        return None
    return round(rounded.margin / trained.margin, 4)


def changed_share(start: str | Path, saved: Path) -> float | None:
    """Return the share of saved weights that differ from those at the start, in the precision of the saved ones.

    Weights that the start lacks, such as a new head or the rows of new tokens, are left out.

    Args:
        start: model folder, or Hub id of one that is in the cache.
        saved: model folder.

    Returns:
        From 0 to 1; None where the start's weights are not at hand.
    """
    from safetensors import safe_open

    folder = _local(start)
    if folder is None:
        return None
    files = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
    differ = count = 0
    for path in sorted(saved.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as ours:
            for name in ours.keys():  # noqa: SIM118
                if name not in files:
                    continue
                with safe_open(str(files[name]), framework="pt") as theirs:
                    now, then = ours.get_tensor(name), theirs.get_tensor(name)
                if now.shape[1:] != then.shape[1:]:
                    continue
                rows = min(len(now), len(then)) if now.dim() else None
                now, then = now[:rows], then[:rows].to(now.dtype)
                differ += int((now != then).sum())
                count += now.numel()
    return round(differ / count, 4) if count else None


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return list(file.keys())


def _local(model: str | Path) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), local_files_only=True))
    except (OSError, ValueError):
        return None


def rounding_warnings(method: str, left: float | None, trained: Margins | None, save_dtype: str) -> list[str]:
    """Return what a user should hear about a trained model, in sentences."""
    warnings = []
    if left is not None and left < LEAST_MARGIN_LEFT:
        warnings.append(
            f"{left:.0%} of the margin that {method} trained is left in the saved weights ({save_dtype}): raise "
            f"{method}.learning_rate, or set {method}.save_dtype to float32 and actor.dtype to what the server is to "
            "compute in"
        )
    if trained is not None and trained.chosen is not None and trained.chosen_at_start:
        fallen = (trained.chosen_at_start - trained.chosen) / abs(trained.chosen_at_start)
        if fallen > MOST_CHOSEN_LOSS:
            warnings.append(
                f"the log-probability of the chosen texts has fallen by {fallen:.0%}, from "
                f"{trained.chosen_at_start:.1f} to {trained.chosen:.1f}; lower {method}.learning_rate, or set "
                f"{method}.sft_weight"
            )
    return warnings
