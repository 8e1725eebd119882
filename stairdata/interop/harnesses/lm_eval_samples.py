"""Sample logs of lm-evaluation-harness: `samples_TASK_DATE.jsonl`, written with `--log_samples`.

The format is that of `lm_eval/evaluator.py` and `lm_eval/loggers/evaluation_tracker.py` of version 0.4.13: one object
for a document and filter, with `arguments` (what was sent), `resps`, the names of its `metrics`, and the value of each
metric under its name. The file lies in a folder that is named after the model, with `__` for a slash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stairdata.generators.prompts.files import BrokenRow, read_rows
from stairdata.interop.harnesses.sample import (
    BrokenSampleError,
    HarnessSample,
    HarnessScore,
    unit_number,
    users_text,
)

_FILE = re.compile(r"samples_(?P<task>.+?)_\d{4}-\d{2}-\d{2}T[\d.:-]+", re.ASCII)


def samples_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the samples of a file, each with where it stands, and what the file's place says under `file`.

    Raises:
        InputError: a file that can't be read.
    """
    found = _FILE.fullmatch(path.name.partition(".jsonl")[0])
    named = {"task": found["task"] if found else path.name.partition(".")[0], "model": _model(path), "name": path.name}
    for number, row in enumerate(read_rows(path), start=1):
        sample = row if not isinstance(row, BrokenRow) else row.raw
        yield f"row {number}", {"file": named, "sample": sample}


def _model(path: Path) -> str:
    return path.resolve().parent.name.replace("__", "/") or "unnamed"


def lm_eval_sample(element: dict[str, Any]) -> HarnessSample:
    """Read one sample.

    Raises:
        BrokenSampleError: it was no generation, or lacks what is needed.
    """
    named, sample = element["file"], element["sample"]
    if not isinstance(sample, dict):
        raise BrokenSampleError("not_an_object")
    kept, filtered = sample.get("filter"), sample.get("filtered_resps")
    return HarnessSample(
        benchmark=named["task"],
        model=named["model"],
        sample_key=f"{named['name']}/{sample.get('doc_id')}",
        sample=0,
        prompt=_prompt(sample.get("arguments")),
        sent=None,
        response=_response(sample.get("resps")),
        is_cut=False,
        scores=list(_scores(sample)),
        details={"target": sample.get("target"), "sample_id": sample.get("doc_id"), "filter": kept, "kept": filtered},
    )


def _prompt(arguments: Any) -> str:
    """Return what was sent: a text, or the last user turn of a conversation, which is JSON in a list.

    Turns before the last are examples, where the harness gives them as turns; in a text they stand before the question.
    """
    first = arguments.get("gen_args_0") if isinstance(arguments, dict) else None
    sent = first.get("arg_0") if isinstance(first, dict) else None
    if isinstance(sent, list) and len(sent) == 1:
        sent = sent[0]
    if not isinstance(sent, str):
        raise BrokenSampleError("wrong_type", "arguments.gen_args_0.arg_0")
    if sent.startswith("[{"):
        try:
            turns = json.loads(sent)
        except (ValueError, RecursionError):
            return sent
        if all(isinstance(turn, dict) and "role" in turn for turn in turns):
            return users_text(turns, "arguments.gen_args_0.arg_0", few_shot=True)
    return sent


def _response(responses: Any) -> str:
    """Return the first answer; tasks that compare likelihoods have none."""
    text = responses
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        raise BrokenSampleError("not_generated", "resps")
    return text


def _scores(sample: dict[str, Any]) -> Iterator[HarnessScore]:
    names = sample.get("metrics")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise BrokenSampleError("no_scores", "metrics")
    for name in names:
        value = sample.get(name)
        yield HarnessScore(f"lm-eval:{name},{sample.get('filter')}", unit_number(value), details={"value": value})
