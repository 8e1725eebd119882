"""Log-probabilities that the reference model gives to pairs, kept for the next training on the same."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata_schemas.files import sync_file

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = ".reference-logps"
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_COLUMNS = ["ref_chosen_logps", "ref_rejected_logps"]


def kept_reference(
    ids: Dataset, parent: Path, key: Sequence[str], accelerator: Any, compute: Callable[[], Dataset]
) -> Dataset:
    """Return pairs with their log-probabilities, computed if these are not kept yet.

    They lie in `<parent>/.reference-logps/`, 16 bytes a pair; the folder can be deleted at any time.

    Args:
        ids: of the pairs, from a file.
        parent: folder in which the trained model's folder stands.
        key: what decides the values besides the ids: model, precision, size of the batches.
        accelerator: of the training; the first process writes.
        compute: computes them.
    """
    from datasets import Dataset, concatenate_datasets

    kept = parent / FOLDER / f"{_key(ids, key)}.arrow"
    accelerator.wait_for_everyone()  # the first may be writing the file that the others would find
    if kept.is_file():
        return concatenate_datasets([ids, Dataset.from_file(str(kept))], axis=1)
    whole = compute()
    if accelerator.is_main_process:
        _keep(whole, kept)
    return whole


def _key(ids: Dataset, key: Sequence[str]) -> str:
    digest = hashlib.sha256("/".join(key).encode())
    for name in _IDS:
        for chunk in ids.data.column(name).chunks:
            digest.update(chunk.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(chunk.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()[:32]


def _keep(whole: Dataset, kept: Path) -> None:
    kept.parent.mkdir(exist_ok=True)
    made = kept.with_suffix(".partial")
    whole.select_columns(_COLUMNS).map(load_from_cache_file=False, cache_file_name=str(made))
    sync_file(made)
    shutil.move(made, kept)
