"""How a command prints the artifact it made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stairdata.cli.console import emit, say

if TYPE_CHECKING:
    from stairdata_schemas.artifacts import Artifact


def print_artifact(artifact: Artifact | None, *, json_: bool = False) -> None:
    """Print the reference on stdout and a summary on stderr, or one JSON object.

    Args:
        artifact: None where a batch leaves it unfinished.
        json_: print the object.
    """
    if artifact is not None:
        say(summary(artifact))
    if json_:
        emit(json.dumps(facts(artifact)))
    elif artifact is not None:
        emit(artifact.reference)


def summary(artifact: Artifact) -> str:
    """Return one line on what an artifact holds."""
    manifest = artifact.manifest
    parts = [f"{artifact.reference}: {manifest.rows} rows in {artifact.folder}"]
    if manifest.quarantine:
        rules = ", ".join(f"{rule} {count}" for rule, count in manifest.quarantine.items())
        parts.append(f"{sum(manifest.quarantine.values())} refused ({rules})")
    if manifest.usage.requests:
        parts.append(f"{manifest.usage.requests} requests, {manifest.usage.completion_tokens} tokens")
    if manifest.usage.reasoning_tokens:
        parts[-1] += f", {manifest.usage.reasoning_tokens} of them thoughts"
    if manifest.usage.cost is not None:
        parts.append(f"cost {manifest.usage.cost:.2f}")
    return "; ".join(parts)


def facts(artifact: Artifact | None) -> dict[str, Any]:
    """Return what `--json` prints."""
    if artifact is None:
        return {"artifact": None, "state": "unfinished"}
    manifest = artifact.manifest
    return {
        "artifact": artifact.reference,
        "state": "complete",
        "folder": str(artifact.folder),
        "rows": manifest.rows,
        "refused": sum(manifest.quarantine.values()),
        "quarantine": manifest.quarantine,
        "outcomes": manifest.outcomes,
        "usage": manifest.usage.model_dump(),
        "seconds": manifest.seconds,
        "fingerprint": manifest.fingerprint,
        "content_hash": manifest.content_hash,
    }
