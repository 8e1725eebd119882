"""`stairdata import --from inspect|lm-eval --kind evaluations`: one row for each score of each sample."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.interop.harnesses.inspect_log import inspect_sample, samples_of_log
from stairdata.interop.harnesses.lm_eval_samples import lm_eval_sample, samples_of_file
from stairdata.interop.harnesses.sample import BrokenSampleError, HarnessSample, HarnessScore
from stairdata.interop.imported_files import frames_of, hash_files
from stairdata.recipe.section import Task
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import UsageError
from stairdata_schemas.grammar import STEP_OPEN
from stairdata_schemas.quarantine import QuarantineRow
from stairdata_schemas.text.visible import is_blank

GENERATORS = {"inspect": "import_inspect/1", "lm-eval": "import_lm_eval/1"}
ROWS_AT_ONCE = 4096
NOTE = (
    "scored by another harness: a score is its scorer's value where that is a number from 0 to 1 (right or wrong as 1 "
    "or 0), and whether more is better is the scorer's own meaning; models are named as there, without a hash"
)


class HarnessNames(NamedTuple):
    """What the command line says where logs say nothing, or another name is wanted."""

    benchmark: str | None = None
    model: str | None = None
    attack: str = "none"
    task: Task | None = None


class _Format(NamedTuple):
    samples: Callable[[Path], Iterator[tuple[str, Any]]]
    read: Callable[[dict[str, Any]], HarnessSample]


_FORMATS = {
    "inspect": _Format(samples_of_log, inspect_sample),
    "lm-eval": _Format(samples_of_file, lm_eval_sample),
}


def import_harness(
    harness: str, kind: str, paths: Sequence[Path], options: BuildOptions, names: HarnessNames
) -> Artifact:
    """Import sample logs into one artifact.

    Args:
        harness: inspect or lm-eval.
        kind: evaluations.
        paths: the logs.
        options: where to build.
        names: of benchmark, model and attack, and the task.

    Raises:
        UsageError: another kind.
        InputError: a file that is not there, or no log.
        QuarantineError: too many samples were refused.
    """
    if kind != "evaluations":
        raise UsageError(f"can't import {kind!r} from {harness}; --kind is evaluations")
    plan = _plan(harness, paths, names)

    def content(_: Build) -> BuildContent:
        refused: list[QuarantineRow] = []
        report = Report(notes=[NOTE])
        counts: Counter[str] = Counter()
        rows = _rows(harness, paths, names, refused, counts, options)
        return BuildContent(_frames(rows, counts, report), refused, report)

    return build_artifact(
        plan, content, options.root, options.version, fresh=options.fresh, max_quarantine=options.max_quarantine
    )


def _plan(harness: str, paths: Sequence[Path], names: HarnessNames) -> BuildPlan:
    hashes = hash_files(paths)
    files = [f"{path.resolve().parent.name}/{path.name}" if harness == "lm-eval" else path.name for path in paths]
    configuration = {"from": harness, "kind": "evaluations", "files": files, **names._asdict()}
    return BuildPlan("evaluations", GENERATORS[harness], configuration, inputs=hashes)


def _rows(
    harness: str,
    paths: Sequence[Path],
    names: HarnessNames,
    refused: list[QuarantineRow],
    counts: Counter[str],
    options: BuildOptions,
) -> Iterator[Row]:
    form, done = _FORMATS[harness], 0
    for path in paths:
        for number, (place, element) in enumerate(form.samples(path), start=1):
            try:
                sample = form.read(element)
                _check(sample)
            except BrokenSampleError as error:
                raw = json.dumps(element["sample"], ensure_ascii=False, default=str)
                refused.append(QuarantineRow(path.name, number, error.rule, raw, error.where, place))
            else:
                counts.update(_counts(sample))
                yield from (_row(sample, score, names) for score in sample.scores)
            done += 1
            options.progress(f"import {path.name}", done, 0)


def _check(sample: HarnessSample) -> None:
    for where, text in (("prompt", sample.prompt), ("response", sample.response), ("sent", sample.sent or "")):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BrokenSampleError("not_unicode", where)
    if is_blank(sample.prompt):
        raise BrokenSampleError("blank", "prompt")


def _counts(sample: HarnessSample) -> dict[str, int]:
    """Return what the manifest sums up: answers of which nothing is known."""
    outcome = _outcome(sample)
    return {f"{outcome}_answers": 1} if outcome else {}


def _outcome(sample: HarnessSample) -> str | None:
    if sample.is_cut:
        return "cut"
    return "empty" if is_blank(sample.response) else None


def _row(sample: HarnessSample, score: HarnessScore, names: HarnessNames) -> Row:
    """Make a row; a cut or empty answer is neither right nor a refusal, whatever the scorer took it for."""
    prompt_id, model = identity.prompt_id(sample.prompt), names.model or sample.model
    outcome = _outcome(sample)
    key = hashlib.sha256(f"{prompt_id}/{model}/{sample.sample_key}".encode()).hexdigest()[: identity.ID_LENGTH]
    details = {"prompt": sample.prompt, **sample.details, **score.details} | ({"outcome": outcome} if outcome else {})
    changed = sample.sent is not None and sample.sent != sample.prompt
    return {
        "prompt_id": prompt_id,
        "benchmark": names.benchmark or sample.benchmark,
        "attack": names.attack,
        "response_id": key,
        "sample": sample.sample,
        "attacked_prompt": sample.sent if changed else None,
        "task": names.task or sample.task,
        "model": model,
        "method": "sample",
        "response": sample.response,
        "refused": None if outcome else score.refused,
        "helpfulness": None,
        "safety": None,
        "score": None if outcome else score.score,
        "judge": score.judge,
        "reads": "whole" if STEP_OPEN in sample.response else "answer",
        "details": _as_json({name: value for name, value in details.items() if value is not None}),
    }


def _as_json(details: Row) -> str:
    """Write details; a number that JSON has none for, such as NaN, becomes a word."""
    return json.dumps(json.loads(json.dumps(details, default=str), parse_constant=str))


def _frames(rows: Iterator[Row], counts: Counter[str], report: Report) -> Iterator[pl.DataFrame]:
    yield from frames_of(rows, "evaluations", ROWS_AT_ONCE)
    report.details |= dict(sorted(counts.items()))
