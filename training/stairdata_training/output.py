"""Where a training writes: a model folder is either whole or not there.

    <output>.partial/    started.json (whose run it is), checkpoints/, tokens/, and at the end the model
    <output>/            the model with training.json, moved here in one rename
    <output>.old/        the model that stood there before, for the moment between two renames

A killed run leaves `<output>.partial`; the next one with the same fingerprint goes on from its newest whole
checkpoint, and one with another fingerprint throws it away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stairdata_schemas.errors import BuildLockedError, StairDataError, TrainingError, quote
from stairdata_schemas.files import sync_file, sync_folder, write_atomic

TRAINING_FILE = "training.json"
_STARTED_FILE = "started.json"
_LAST_FILE_OF_A_CHECKPOINT = "trainer_state.json"
_FAILED_WRITES = ("os error ", "No space left on device", "PytorchStreamWriter failed", "inline_container.cc")
"""How Rust's libraries and torch say that the system refused to write."""


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What a training did."""

    output: Path
    method: str
    """sft, dpo or prm."""
    rows: int
    tokens: int
    """Tokens the model was trained on, all epochs together, without padding."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """Wall time of the run that finished, without what a killed one used before."""
    first_loss: float
    last_loss: float
    losses: tuple[tuple[int, float], ...]
    """(step, loss) of every step."""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold an output folder for this process; the lock ends with the process, however that ends.

    Raises:
        BuildLockedError: another process trains into it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_beside(output, "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BuildLockedError(f"another process is training into {output}; wait for it, or choose another") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def failed_writes_named(folder: Path) -> Iterator[None]:
    """Turn what safetensors, tokenizers and torch raise where a file can't be written into one message.

    Each has an error of its own, with the system's words in it; none is an OSError.

    Raises:
        TrainingError: a file couldn't be written.
    """
    try:
        yield
    except (OSError, StairDataError):
        raise
    except Exception as error:
        if not any(words in str(error) for words in _FAILED_WRITES):
            raise
        raise TrainingError(
            f"a file under {folder} can't be written: {quote(' '.join(str(error).split()))}; the newest "
            "checkpoint is kept: make room or name another output folder, and run the same command again"
        ) from error


def finished(output: Path, fingerprint: str) -> TrainingSummary | None:
    """Return the summary of a finished training with this fingerprint, or None; moves nothing, so needs no lock.

    Raises:
        TrainingError: the folder is there and holds something that no training wrote.
    """
    if output.is_dir() and any(output.iterdir()) and not (output / TRAINING_FILE).is_file():
        raise TrainingError(
            f"{output} is not empty and holds no {TRAINING_FILE}, so no training wrote it; choose another output folder"
        )
    record = _read(output / TRAINING_FILE)
    return _summary(output, record["summary"]) if record.get("fingerprint") == fingerprint else None


def publish_finished(output: Path) -> None:
    """Publish a model whose process was killed between its last write and the rename; the folder must be locked."""
    if (partial_folder(output) / TRAINING_FILE).is_file():
        publish(output)


def start(output: Path, fingerprint: str) -> Path:
    """Return the folder to work in, kept from a killed run if the fingerprint is the same, else empty."""
    partial = partial_folder(output)
    if _read(partial / _STARTED_FILE).get("fingerprint") != fingerprint:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    write_atomic(partial / _STARTED_FILE, json.dumps({"fingerprint": fingerprint}))
    return partial


def partial_folder(output: Path) -> Path:
    """Return the folder in which the training into `output` works."""
    return _beside(output, "partial")


def last_checkpoint(partial: Path) -> Path | None:
    """Return the newest whole checkpoint; ones that were cut by a kill are removed."""
    from transformers.trainer_utils import get_last_checkpoint

    folder = partial / "checkpoints"
    folder.mkdir(exist_ok=True)
    while found := get_last_checkpoint(str(folder)):
        if _read(Path(found) / _LAST_FILE_OF_A_CHECKPOINT):
            return Path(found)
        shutil.rmtree(found)
    return None


def finish(output: Path, fingerprint: str, config: dict[str, Any], summary: TrainingSummary) -> TrainingSummary:
    """Write training.json beside the model in the partial folder and move it all to its place."""
    record = {
        "fingerprint": fingerprint,
        "config": config,
        "summary": asdict(summary) | {"output": output.name},
    }
    partial = partial_folder(output)
    for path in partial.iterdir():
        if path.is_file():
            sync_file(path)
    write_atomic(partial / TRAINING_FILE, json.dumps(record, indent=1))
    publish(output)
    return summary


def publish(output: Path) -> None:
    """Move a finished partial folder to its place; what stood there is removed afterwards."""
    partial, old = partial_folder(output), _beside(output, "old")
    for name in ("checkpoints", "tokens"):
        shutil.rmtree(partial / name, ignore_errors=True)
    (partial / _STARTED_FILE).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    sync_folder(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.name}.{suffix}")


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _summary(output: Path, record: dict[str, Any]) -> TrainingSummary:
    losses = tuple((int(step), float(loss)) for step, loss in record["losses"])
    return TrainingSummary(**(record | {"output": output, "losses": losses}))
