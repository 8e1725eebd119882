"""Which folder a training of a run writes to, so that no other training's model is ever in its way.

    models/sft             the first training of that name
    models/sft@1a2b3c4d    one with other settings, rows or start model, by the first digits of its fingerprint

A recipe that is changed and run again thus trains into a new folder, and one that is changed back finds its models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DIGITS = 8


def folder_for(models: Path, name: str, fingerprint: str) -> Path:
    """Return the folder of a training: its plain name, unless that is taken by another training or by other files."""
    plain = models / name
    return plain if owner(plain) in {None, fingerprint} else models / f"{name}@{fingerprint[:DIGITS]}"


def is_finished(output: Path, fingerprint: str) -> bool:
    """Tell whether a folder holds the finished model of a training."""
    return _fingerprint(output / "training.json") == fingerprint


def held_out_measures(output: Path, evaluation_hash: str) -> dict[str, Any] | None:
    """Return what a finished model's training.json says of its measures on pairs; None where it has none on these.

    Args:
        output: folder of the model.
        evaluation_hash: content hash of the pairs.
    """
    try:
        found = json.loads((output / "training.json").read_text(encoding="utf-8"))["held_out"]
        return dict(found) if found["content_hash"] == evaluation_hash else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def owner(output: Path) -> str | None:
    """Return the fingerprint of the training that a folder belongs to, finished or not.

    None if nothing is there; empty if it holds what no training of this release wrote.
    """
    if output.is_dir() and any(output.iterdir()):
        return _fingerprint(output / "training.json")
    partial = output.with_name(f"{output.name}.partial")
    return _fingerprint(partial / "started.json", partial / "training.json") if partial.is_dir() else None


def _fingerprint(*files: Path) -> str:
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            return str(record["fingerprint"])
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue
    return ""
