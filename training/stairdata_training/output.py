"""Where a training writes: a model folder is either whole or not there.

    <output>.partial/    started.json (whose run it is), rows/, checkpoints/, and at the end the model
    <output>/            the model with training.json, moved here in one rename
    <output>.old/        the model that stood there before, for the moment between two renames

A killed run leaves `<output>.partial`; the next one with the same fingerprint goes on from its newest whole
checkpoint. One with another fingerprint is refused, since hours of work would be lost, unless it is told to start
afresh; so is one whose output holds a model of another training.
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
from stairdata_schemas.manifest import sha256_of_json
from stairdata_schemas.secrets.own_command import own_command
from stairdata_training.memory import is_out_of_memory

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
def failures_named(folder: Path, method: str) -> Iterator[None]:
    """Turn what libraries raise where a file can't be written, or where memory is out, into one message.

    safetensors, tokenizers and torch have errors of their own for either, with the system's words in them.

    Raises:
        TrainingError: a file couldn't be written, or there is too little memory.
    """
    try:
        yield
    except StairDataError:
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            raise TrainingError(
                f"train {method} needs more memory than there is: {quote(' '.join(str(error).split()) or words)}; "
                f"lower {method}.batch_size and raise {method}.gradient_accumulation by as much, switch on "
                f"{method}.gradient_checkpointing, or train adapters ({method}.lora); the same command goes on"
            ) from error
        if isinstance(error, OSError) or not any(each in words for each in _FAILED_WRITES):
            raise
        raise TrainingError(
            f"a file under {folder} can't be written: {quote(' '.join(str(error).split()))}; the newest "
            "checkpoint is kept: make room or name another output folder, and run the same command again"
        ) from error


def finished(output: Path, identity: dict[str, Any], *, fresh: bool = False) -> TrainingSummary | None:
    """Return the summary of a finished training of this identity, or None; the folder must be locked.

    Raises:
        TrainingError: the folder holds something that no training wrote, or, unless `fresh`, a model of another one.
    """
    if output.is_dir() and any(output.iterdir()) and not (output / TRAINING_FILE).is_file():
        raise TrainingError(
            f"{output} is not empty and holds no {TRAINING_FILE}, so no training wrote it; choose another output folder"
        )
    record = _read(output / TRAINING_FILE)
    if record.get("fingerprint") == sha256_of_json(identity):
        return _summary(output, record["summary"])
    if record and not fresh and not (partial_folder(output) / TRAINING_FILE).is_file():
        raise TrainingError(
            f"{output} holds a model of another training: {_differences(record, identity)}. It is kept; name another "
            "output folder, or replace it with --fresh"
        )
    return None


def publish_finished(output: Path) -> None:
    """Publish a model whose process was killed between its last write and the rename; the folder must be locked."""
    if (partial_folder(output) / TRAINING_FILE).is_file():
        publish(output)


def start(output: Path, identity: dict[str, Any], *, fresh: bool = False) -> Path:
    """Return the folder to work in, kept from a killed run of the same identity, else empty.

    Raises:
        TrainingError: unfinished work of another training is there, and not `fresh`.
    """
    partial = partial_folder(output)
    record = _read(partial / _STARTED_FILE)
    same = record.get("fingerprint") == sha256_of_json(identity)
    if record and not same and not fresh:
        raise TrainingError(
            f"{partial} holds unfinished work of another training: {_differences(record, identity)}. Finish that one, "
            "name another output folder, or start over with --fresh"
        )
    if fresh or not same:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    started = {"fingerprint": sha256_of_json(identity), "identity": identity, "started": own_command()}
    write_atomic(partial / _STARTED_FILE, json.dumps(started))
    return partial


def _differences(record: dict[str, Any], identity: dict[str, Any]) -> str:
    """Name the keys in which a training that was recorded differs from this one."""
    theirs, ours = (_flat(each) for each in (record.get("identity") or {}, identity))
    if not theirs:
        return "it was recorded by an older version, which trained in another way"
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(
        f"other {name.replace('_', ' ')}"
        if name in {"data", "start_model"}
        else f"{name} is {quote(json.dumps(theirs.get(name)))} there and {quote(json.dumps(ours.get(name)))} here"
        for name in names
    )


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    settings = identity.get("settings")
    return {**identity, **settings, "settings": None} if isinstance(settings, dict) else identity


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


def record_of(identity: dict[str, Any], facts: dict[str, Any], summary: TrainingSummary) -> dict[str, Any]:
    """Return what training.json holds.

    Args:
        identity: what decided the result.
        facts: whatever else is to be known about the training, as JSON values.
        summary: what it did.
    """
    return {
        "fingerprint": sha256_of_json(identity),
        "identity": identity,
        **facts,
        "summary": asdict(summary) | {"output": summary.output.name},
    }


def read_record(output: Path) -> dict[str, Any]:
    """Return what training.json of a finished model holds; empty if there is none that can be read."""
    return _read(output / TRAINING_FILE)


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Write training.json of a finished model again."""
    write_atomic(output / TRAINING_FILE, json.dumps(record, indent=1, allow_nan=False))


def finish(output: Path, record: dict[str, Any]) -> None:
    """Write training.json beside the model in the partial folder and move it all to its place."""
    partial = partial_folder(output)
    for path in partial.iterdir():
        if path.is_file():
            sync_file(path)
    write_record(partial, record)
    publish(output)


def publish(output: Path) -> None:
    """Move a finished partial folder to its place; what stood there is removed afterwards."""
    partial, old = partial_folder(output), _beside(output, "old")
    for name in ("checkpoints", "rows"):
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
