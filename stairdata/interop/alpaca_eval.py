"""`stairdata export --to alpaca_eval`: answers as the files of model outputs that AlpacaEval compares.

The format is that of `outputs.json` in https://github.com/tatsu-lab/alpaca_eval: a list of objects with `instruction`,
`output`, `generator` and `dataset`, of one model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.llm.wrapping import without_thoughts
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import InputError, UsageError, quote
from stairdata_schemas.files import naming, write_atomic
from stairdata_schemas.grammar import final_answer

EXPORTED_KINDS = ("evaluations", "responses")


def export_alpaca_eval(artifact: Artifact, path: Path, benchmark: str | None = None, model: str | None = None) -> int:
    """Write the final answers of one model to unattacked prompts, the first sample of each.

    Args:
        artifact: of kind evaluations or responses.
        path: the file.
        benchmark: of evaluations; needed where there are several.
        model: needed where there are several.

    Returns:
        The number of answers written.

    Raises:
        UsageError: another kind, several benchmarks or models, or nothing to write.
        InputError: rows that don't say their prompt, as those of some other programs.
    """
    if artifact.kind not in EXPORTED_KINDS:
        raise UsageError(
            f"{artifact.kind} has no alpaca_eval format; what can be exported: {', '.join(EXPORTED_KINDS)}"
        )
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; make it, or name another file")
    rows = artifact.scan()
    if artifact.kind == "evaluations":
        rows = rows.filter((pl.col("attack") == "none") & (pl.col("sample") == 0))
        rows = _one(rows, "benchmark", benchmark, artifact)
    frame = _one(rows, "model", model, artifact).unique("prompt_id", keep="first", maintain_order=True).collect()
    outputs = list(_outputs(frame, artifact))
    with naming(path):
        write_atomic(path, json.dumps(outputs, ensure_ascii=False, indent=1))
    return len(outputs)


def _one(rows: pl.LazyFrame, column: str, wanted: str | None, artifact: Artifact) -> pl.LazyFrame:
    """Return the rows of one benchmark or model.

    Raises:
        UsageError: there are several, or none of that name.
    """
    found = rows.select(pl.col(column).unique().sort()).collect()[column].to_list()
    if not found:
        raise UsageError(f"{artifact.reference} has no answers to unattacked prompts")
    if wanted is None and len(found) > 1:
        raise UsageError(f"{artifact.reference} has several {column}s; choose with --{column}: {', '.join(found)}")
    if wanted is not None and wanted not in found:
        raise UsageError(f"{artifact.reference} has no {column} {quote(wanted)}; use one of {', '.join(found)}")
    return rows.filter(pl.col(column) == (wanted or found[0]))


def _outputs(frame: pl.DataFrame, artifact: Artifact) -> Iterator[dict[str, Any]]:
    is_evaluation = artifact.kind == "evaluations"
    for row in frame.iter_rows(named=True):
        details = json.loads(row["details"] or "{}") if is_evaluation else row
        prompt = details.get("prompt") if isinstance(details, dict) else None
        if not isinstance(prompt, str):
            raise InputError(f"{artifact.reference}: the row of prompt {row['prompt_id']} doesn't say its prompt")
        category = details.get("category") or row.get("benchmark") or artifact.reference
        answer = final_answer(without_thoughts(row["response"] if is_evaluation else row["text"]))
        yield {"instruction": prompt, "output": answer, "generator": row["model"], "dataset": category}
