"""`stairdata export`: artifacts as files of the published code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stairdata.examples.paths import LIGHT_NODES, TREES_AT_ONCE
from stairdata.interop import thu_ml
from stairdata.runs.progress import Progress, quiet
from stairdata_schemas.artifacts import Artifact, iterate_frames
from stairdata_schemas.errors import UsageError
from stairdata_schemas.files import naming, sync_file, sync_folder

EXPORTED_KINDS = ("trees", "prompts", "preference_pairs", "prm_pairs")
_ROWS_AT_ONCE = {"trees": TREES_AT_ONCE}
_INDENT = "    "


def export_thu_ml(artifact: Artifact, path: Path, progress: Progress = quiet) -> int:
    """Write an artifact in the published form: trees and prompts as a JSON list, pairs as JSONL.

    The file appears when it is whole. What the published form has no place for (rollouts, tokens, ids, tasks of trees)
    stays behind.

    Returns:
        The number of elements written.

    Raises:
        UsageError: a kind that has no published form, or a path in a folder that does not exist.
    """
    if artifact.kind not in EXPORTED_KINDS:
        raise UsageError(f"{artifact.kind} has no thu-ml format; what can be exported: {', '.join(EXPORTED_KINDS)}")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it, or name another file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("w", encoding="utf-8", newline="\n") as file:
            count = 0
            for text in _texts(artifact):
                file.write(text)
                count += 1
                progress(f"export {artifact.kind}", count, artifact.manifest.rows)
            if artifact.kind in {"trees", "prompts"}:
                file.write("\n]" if count else "[]")
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _texts(artifact: Artifact) -> Iterator[str]:
    if artifact.kind in {"preference_pairs", "prm_pairs"}:
        yield from (thu_ml.pair_line(row) for row in _rows(artifact))
        return
    endings = _endings(artifact)
    for number, row in enumerate(_rows(artifact)):
        element = (
            thu_ml.tree_element(row["prompt"], row["nodes"], endings)
            if artifact.kind == "trees"
            else thu_ml.prompt_element(row)
        )
        yield ("[\n" if number == 0 else ",\n") + _indented(element)


def _indented(element: Any) -> str:
    """Write an element as the published writer does: indented by four, inside a list."""
    text = json.dumps(element, ensure_ascii=False, indent=4)
    return _INDENT + text.replace("\n", f"\n{_INDENT}")  # JSON has no line break of a text; U+2028 is none of its lines


def _endings(artifact: Artifact) -> dict[bool, str]:
    """Return the end-of-turn text that an import took off, to be put back."""
    usual = artifact.manifest.details.get("end_of_turn")
    known = usual if isinstance(usual, dict) else {}
    return {True: str(known.get("closed", "")), False: str(known.get("open", ""))}


def _rows(artifact: Artifact) -> Iterator[dict[str, Any]]:
    for path in artifact.data_files:
        for frame in iterate_frames(path, _ROWS_AT_ONCE.get(artifact.kind, 1024)):
            columns = [name for name in frame.columns if name not in {"alternatives", "seconds", "thoughts"}]
            light = ["prompt", LIGHT_NODES] if artifact.kind == "trees" else columns  # the form has no rollouts
            yield from frame.select(light).iter_rows(named=True)
