"""Prompts of an evaluation that a model has seen in training: those of its training data and all that it was made from.

A model folder's training.json names the data and the model that the training began with; manifests name the parents of
the data, and the start model's own training.json goes on. Nothing is fetched: what is not on this machine is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stairdata.hub.lineage import ArtifactKey, artifact_key, local_artifacts
from stairdata.hub.pull import STORE
from stairdata_schemas.artifacts import Artifact, open_artifact
from stairdata_schemas.errors import ArtifactError, ModelError, StairDataError, quote
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import MEBIBYTE, TooLargeError
from stairdata_schemas.manifest import MANIFEST_NAME, Parent
from stairdata_schemas.rendering import model_hash
from stairdata_schemas.text.words import spaced

TRAINING_NAME = "training.json"
_RECORD_BYTES = 256 * MEBIBYTE
_DEEPEST = 64
"""Trainings one behind the other; a circle can't be, since each names the hash of the one before."""


@dataclass(frozen=True, slots=True)
class SeenPrompts:
    """The prompts of a model's training data, of what that was made from, and of its start model's training."""

    by_id: dict[str, str] = field(default_factory=dict)
    """Reference of the artifact that a prompt is in, by prompt_id."""
    by_words: dict[str, str] = field(default_factory=dict)
    """The same by the prompt's words: case, punctuation and spaces count for nothing."""
    looked_at: list[str] = field(default_factory=list)
    """Artifacts that were read."""
    missing: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""

    def find(self, prompt_id: str, prompt: str) -> str | None:
        """Return the artifact that a prompt is in, as it stands or in the same words; None if in none."""
        return self.by_id.get(prompt_id) or self.by_words.get(_words(prompt))


def seen_in_training(model: Path, root: Path) -> SeenPrompts:
    """Find what a model was trained on.

    Args:
        model: the model folder; its start model is looked for beside it.
        root: folder of the artifacts.

    Returns:
        The prompts, and what of the ancestry was not found.
    """
    seen, done = SeenPrompts(), set[ArtifactKey]()
    local = local_artifacts(root) | _fetched(root)
    folder: Path | None = model.resolve()
    for _ in range(_DEEPEST):
        if folder is None:
            break
        record = _record(folder, seen)
        _follow(_parent(record.get("data")), folder.name, local, seen, done)
        folder = _start_model(folder, record, seen)
    return seen


def _record(folder: Path, seen: SeenPrompts) -> dict[str, Any]:
    """Read what a model folder says of its training; empty if it says nothing."""
    path = folder / TRAINING_NAME
    try:
        record = json.loads(read_text(path, _RECORD_BYTES))
    except FileNotFoundError:
        seen.missing.append(f"the training data of {quote(folder.name)}: it has no {TRAINING_NAME}")
        return {}
    except (OSError, ValueError, RecursionError, TooLargeError) as error:
        seen.missing.append(f"the training data of {quote(folder.name)}: {TRAINING_NAME} can't be read ({error})")
        return {}
    if not isinstance(record, dict) or _parent(record.get("data")) is None:
        seen.missing.append(f"the training data of {quote(folder.name)}: {TRAINING_NAME} names no artifact")
    return record if isinstance(record, dict) else {}


def _parent(data: Any) -> Parent | None:
    try:
        return Parent.model_validate(data)
    except ValidationError:
        return None


def _follow(
    parent: Parent | None,
    model: str,
    local: dict[ArtifactKey, Artifact],
    seen: SeenPrompts,
    done: set[ArtifactKey],
) -> None:
    """Take in an artifact and all that it was made from, but for those that are in `done`."""
    waiting = [parent] if parent else []
    while waiting:
        each = waiting.pop()
        key = artifact_key(each)
        if key in done:
            continue
        done.add(key)
        artifact = local.get(key)
        reference = f"{each.kind}@{each.version}"
        if artifact is None:
            on_hub = f"; fetch it: `stairdata pull {each.repo}@{each.commit}`" if each.repo and each.commit else ""
            seen.missing.append(
                f"{reference} of {quote(model)} is not under the artifacts' root, or damaged there{on_hub}"
            )
            continue
        try:
            _take(artifact, reference, seen)
        except StairDataError as error:
            seen.missing.append(f"{reference} of {quote(model)} can't be read: {error}")
        waiting += artifact.manifest.parents


def _take(artifact: Artifact, reference: str, seen: SeenPrompts) -> None:
    rows = artifact.scan()
    if "prompt" not in rows.collect_schema().names():
        return  # reviews: what they are of is among the parents
    for prompt_id, prompt in rows.select("prompt_id", "prompt").unique().collect().iter_rows():
        seen.by_id.setdefault(prompt_id, reference)
        seen.by_words.setdefault(_words(prompt), reference)
    seen.looked_at.append(reference)


def _words(prompt: str) -> str:
    return spaced(prompt) or prompt


def _fetched(root: Path) -> dict[ArtifactKey, Artifact]:
    """Return releases that were fetched from the Hub and are kept apart from what was built."""
    found = {}
    for manifest in _manifests(root / STORE):
        try:
            artifact = open_artifact(manifest.parent)
        except ArtifactError:
            continue
        found[artifact_key(artifact.manifest)] = artifact
    return found


def _manifests(store: Path) -> Iterator[Path]:
    for depth in ("*/*/*", "*/*/*/*"):  # org, name, commit, and the config where there are several
        yield from store.glob(f"{depth}/{MANIFEST_NAME}")


def _start_model(folder: Path, record: dict[str, Any], seen: SeenPrompts) -> Path | None:
    """Return the folder of the model that a training began with; None if it isn't one of ours beside it."""
    base = record.get("base_model")
    if not isinstance(base, dict) or not isinstance(base.get("name"), str):
        return None
    name, expected = base["name"], base.get("hash")
    beside = folder.parent / Path(name).name
    if expected is None or not beside.is_dir():
        seen.missing.append(
            f"the training of {quote(name)}, which {quote(folder.name)} began with: it is not beside it"
        )
        return None
    try:
        found = model_hash(beside)
    except (ModelError, OSError) as error:
        seen.missing.append(f"the training of {quote(name)}, which {quote(folder.name)} began with: {error}")
        return None
    if found != expected:
        seen.missing.append(
            f"the training of {quote(name)}, which {quote(folder.name)} began with: the folder beside it is another "
            f"model ({found} instead of {expected})"
        )
        return None
    return beside
