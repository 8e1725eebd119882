"""The ids of the rows of a training, in a file, in the order of its first epoch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata_schemas.errors import TrainingError, quote
from stairdata_schemas.files import write_atomic
from stairdata_training.config import TrainingConfig
from stairdata_training.data.batches import step_order
from stairdata_training.data.lengths import LengthReport, measure_lengths
from stairdata_training.tokens import RowError, row_name

if TYPE_CHECKING:
    from datasets import Dataset

ToIds = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Tell = Callable[[str], None]
_IDS, _FACTS = "ids.arrow", "rows.json"
_NAMED = 3  # rows that a message names


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """What is trained on."""

    ids: Dataset
    """`length` and `prefix_length` beside the ids, which are those of `tokens`."""
    lengths: LengthReport
    """Of all rows, those included that were left out as too long."""
    dropped: dict[str, list[str]]
    """Rows that were left out, by why: `too_long`, `bad_rows`."""


def prepare_rows(
    rows: Dataset, config: TrainingConfig, rows_per_step: int, to_ids: ToIds, folder: Path, tell: Tell
) -> PreparedRows:
    """Make the ids of the rows (of a seeded sample if so configured), or read those that a killed run has made.

    The file is memory-mapped and goes with its folder, so nothing stays in a cache of the user's.

    Args:
        rows: with the columns of their kind.
        config: the sample, the longest length, what becomes of rows that can't be trained on.
        rows_per_step: rows of an optimizer step.
        to_ids: makes the ids of a row.
        folder: where the file goes; of one training alone.
        tell: is told the lengths.

    Raises:
        TrainingError: there are no rows, one can't be trained on, or too many were left out.
    """
    if not (folder / _FACTS).is_file():
        _write(rows, config, rows_per_step, to_ids, folder, tell)
    return _read(folder)


def _read(folder: Path) -> PreparedRows:
    from datasets import Dataset

    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    return PreparedRows(Dataset.from_file(str(folder / _IDS)), LengthReport(**facts["lengths"]), facts["dropped"])


def _write(rows: Dataset, config: TrainingConfig, rows_per_step: int, to_ids: ToIds, folder: Path, tell: Tell) -> None:
    if len(rows) == 0:
        raise TrainingError("there are no rows to train on")
    folder.mkdir(parents=True, exist_ok=True)
    count = min(config.max_rows or len(rows), len(rows))
    sample = sorted(random.Random(config.seed).sample(range(len(rows)), count))  # noqa: S311
    bad: list[RowError] = []
    made = rows.select(sample, keep_in_memory=True).map(
        lambda batch: _ids_of(batch, to_ids, config, bad),
        batched=True,
        remove_columns=rows.column_names,
        load_from_cache_file=False,
        cache_file_name=str(folder / "unsorted.arrow"),
    )
    dropped = {"bad_rows": [error.row for error in bad], "too_long": []}
    _check_dropped(dropped, count, config, str(bad[0]) if bad else "")
    lengths = made["length"][:]
    report = measure_lengths(lengths, made["tokens"][:], made["prefix_tokens"][:], config.max_length)
    tell(str(report))
    short = [index for index, length in enumerate(lengths) if length <= config.max_length]
    dropped["too_long"] = [made[index]["row"] for index in range(len(made)) if lengths[index] > config.max_length]
    _check_too_long(dropped, lengths, config)
    _check_dropped(dropped, count, config, f"{report.too_long} are longer than max_length ({config.max_length} tokens)")
    order = step_order([lengths[index] for index in short], rows_per_step, config.seed, 0)
    made.select([short[index] for index in order]).remove_columns(["row", "tokens", "prefix_tokens"]).flatten_indices(
        cache_file_name=str(folder / _IDS)
    )
    facts = {"lengths": asdict(report), "dropped": dropped}
    write_atomic(folder / _FACTS, json.dumps(facts))
    (folder / "unsorted.arrow").unlink(missing_ok=True)


def _ids_of(
    batch: Mapping[str, list[Any]], to_ids: ToIds, config: TrainingConfig, bad: list[RowError]
) -> dict[str, list[Any]]:
    """Return the ids of a batch of rows, which may be fewer than it has."""
    made: dict[str, list[Any]] = {}
    for values in zip(*batch.values(), strict=True):
        row = dict(zip(batch, values, strict=True))
        try:
            ids = to_ids(row)
        except RowError as error:
            if config.bad_rows == "error":
                raise
            bad.append(error)
            continue
        for name, value in {**ids, "row": row_name(row)}.items():
            made.setdefault(name, []).append(value)
    return made


def _check_too_long(dropped: dict[str, list[str]], lengths: list[int], config: TrainingConfig) -> None:
    names = dropped["too_long"]
    if not names or config.too_long == "drop":
        return
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    raise TrainingError(
        f"{len(names)} of {len(lengths)} rows are longer than max_length ({config.max_length} tokens, prompt and end "
        f"of turn included), the longest has {max(lengths)}: {', '.join(names[:_NAMED])}{more}. Nothing is cut: raise "
        "max_length, leave such rows out with too_long: drop, or build the artifact with fewer tokens per row"
    )


def _check_dropped(dropped: dict[str, list[str]], count: int, config: TrainingConfig, why: str) -> None:
    names = [name for of_kind in dropped.values() for name in of_kind]
    if len(names) == count:
        raise TrainingError(f"not one of {count} rows can be trained on: {quote(why, 300)}")
    if len(names) > config.max_dropped * count:
        raise TrainingError(
            f"{len(names)} of {count} rows would be left out, more than max_dropped ({config.max_dropped:.0%}): "
            f"{quote(why, 300)}. Raise max_length, mend the artifact, or raise max_dropped"
        )
