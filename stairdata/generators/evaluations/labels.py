"""Answers with labels that people gave, out of a file of any shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stairdata.generators.prompts.files import BrokenRow, read_rows
from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import InputError, UsageError, quote, suggest

COLUMNS = {
    "prompt": ("prompt", "question", "instruction"),
    "response": ("response", "completion", "answer", "output"),
    "label": ("label", "final_label", "human_label"),
    "model": ("model",),
}
"""The columns that are read, each with the names that are looked for; XSTest's files have `completion`, and `label` or
`final_label`."""
OPTIONAL = {"model"}
LABELS = {
    "1_full_compliance": False,
    "2_full_refusal": True,
    "3_partial_refusal": True,
    "full_compliance": False,
    "full_refusal": True,
    "partial_refusal": True,
    "compliance": False,
    "refusal": True,
    "false": False,
    "true": True,
}
"""Whether a label says that the answer is a refusal: XSTest's, and plain ones."""


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer, and what a person said of it."""

    prompt: str
    response: str
    label: str
    is_positive: bool
    """The label is one of those that the judge is to find: refusals, unless others were named."""
    model: str
    """Who answered; where the file does not say, the file's name."""


def read_labelled(
    paths: Sequence[Path], columns: Mapping[str, str] | None = None, positive: Sequence[str] = ()
) -> list[LabelledAnswer]:
    """Read labelled answers.

    Args:
        paths: files of JSON, JSON Lines, CSV, TSV or Parquet.
        columns: what a file calls `prompt`, `response`, `label` or `model`, where it is none of `COLUMNS`.
        positive: labels to find; all others are to be left. Default: what `LABELS` says.

    Raises:
        InputError: a file that can't be read or is without a column, a cell without text, or a label nobody knows.
        UsageError: a column or label was named that there is none of.
    """
    columns = dict(columns or {})
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise UsageError(f"--columns names {quote(unknown[0])}, which is not read; {suggest(unknown[0], COLUMNS)}")
    answers = [answer for path in paths for answer in _read_file(path, columns, positive)]
    if not answers:
        raise InputError(f"there are no labelled answers in {', '.join(map(str, paths))}")
    labels = {answer.label for answer in answers}
    if missing := [label for label in positive if label not in labels]:
        raise UsageError(
            f"no answer has the label {quote(missing[0])} of --positive; {suggest(missing[0], sorted(labels))}"
        )
    return answers


def _read_file(path: Path, columns: Mapping[str, str], positive: Sequence[str]) -> Iterator[LabelledAnswer]:
    names: dict[str, str] = {}
    for number, row in enumerate(read_rows(path), 1):
        if isinstance(row, BrokenRow):
            raise InputError(f"{path}, row {number}: {row.detail or row.rule}: {quote(row.raw)}; correct or remove it")
        names = names or _find_columns(path, row, columns)
        place = f"{path}, row {number}"
        label = _cell(row, names["label"], place)
        yield LabelledAnswer(
            prompt=_cell(row, names["prompt"], place),
            response=str(row.get(names["response"]) or ""),  # an empty answer is one
            label=label,
            is_positive=label in positive if positive else _meaning(label, place),
            model=str(row.get(names.get("model", "")) or path.stem),
        )


def _find_columns(path: Path, row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, known in COLUMNS.items():
        wanted = (columns[name],) if name in columns else known
        column = next((each for each in wanted if each in row), None)
        if column is not None:
            found[name] = column
        elif name not in OPTIONAL or name in columns:
            there = ", ".join(quote(each) for each in row) or "none"
            raise InputError(
                f"{path} has no column {' or '.join(map(repr, wanted))} for the {name}; its columns are {there}; "
                f"name the right one: --columns {name}=COLUMN"
            )
    return found


def _cell(row: Row, column: str, place: str) -> str:
    value: Any = row.get(column)
    if value is None or not str(value).strip():
        raise InputError(f"{place} has nothing in the column {column!r}; fill it in or remove the row")
    return str(value)


def _meaning(label: str, place: str) -> bool:
    known = LABELS.get(label.strip().lower())
    if known is None:
        raise InputError(
            f"{place} has the label {quote(label)}, which is not known; {suggest(label, LABELS)}, or say which labels "
            "are refusals: --positive LABEL"
        )
    return known
