"""Reading rows of other people's: JSON, JSONL, CSV, Parquet, and Hub datasets."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stairdata_schemas.artifacts import iterate_frames
from stairdata_schemas.errors import InputError, quote

Row = dict[str, Any]
LONGEST_FIELD = 2**31 - 1


class BrokenRow(NamedTuple):
    """A row that could not be read at all."""

    rule: str
    raw: str


def read_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """Yield the rows of a file by its ending.

    Raises:
        InputError: missing, unreadable, empty, of an unknown ending, or broken as a whole.
    """
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown ending {path.suffix!r}; known are {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        yield from reader(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read: {error}") from error


def _read_jsonl(path: Path) -> Iterator[Row | BrokenRow]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                yield _parse_line(line)


def _parse_line(line: str) -> Row | BrokenRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return BrokenRow("not_json", line)
    return value if isinstance(value, dict) else BrokenRow("not_an_object", line)


def _read_json(path: Path) -> Iterator[Row | BrokenRow]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if not isinstance(value, list):
        raise InputError(f"{path} has to be a list of objects, found {quote(value)}")
    for item in value:
        yield item if isinstance(item, dict) else BrokenRow("not_an_object", json.dumps(item))


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            yield {key: value or None for key, value in row.items() if key is not None}


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    try:
        for frame in iterate_frames(path):
            yield from frame.iter_rows(named=True)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a parquet file: {error}") from error


def read_hub(dataset: str, revision: str | None, config: str | None, split: str) -> Iterator[Row]:
    """Stream the rows of a Hub dataset; no code of the repository is run.

    Raises:
        InputError: not there, not reachable, or no such configuration or split.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(dataset, config, split=split, revision=revision, streaming=True)
        yield from rows
    except Exception as error:
        raise InputError(
            f"the Hub dataset {quote(dataset)} can't be read ({type(error).__name__}: {quote(str(error))}); check id, "
            "revision, config and split, or download its files elsewhere and name them with `path:`"
        ) from error


def hub_license(dataset: str, revision: str) -> str | None:
    """Return the licence that a Hub dataset's card states; None where it states none, or several.

    Raises:
        InputError: not there or not reachable.
    """
    from huggingface_hub import HfApi

    try:
        card = HfApi().dataset_info(dataset, revision=revision).card_data
    except Exception as error:
        raise InputError(
            f"the Hub can't say under which licence {quote(dataset)} is ({type(error).__name__}: {quote(str(error))}); "
            "name it in the recipe with `license:`, or try again"
        ) from error
    stated = card.get("license") if card is not None else None
    return stated if isinstance(stated, str) else None


def hub_revision(dataset: str, revision: str | None) -> str:
    """Resolve a branch or tag of a Hub dataset to a commit sha.

    Raises:
        InputError: not there or not reachable.
    """
    from huggingface_hub import HfApi

    try:
        sha = HfApi().dataset_info(dataset, revision=revision).sha
    except Exception as error:
        raise InputError(
            f"the Hub can't say what {quote(dataset)} at {revision or 'its head'} is "
            f"({type(error).__name__}: {quote(str(error))}); "
            "check the id and the network, or download its files elsewhere and name them with `path:`"
        ) from error
    return str(sha)
