"""The journal of a build's finished rows: one line a row, on disk before the row counts as finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.runs.units import Unit, UnitResult
from stairdata_schemas.building import Build
from stairdata_schemas.files import read_record, scan_journal
from stairdata_schemas.kinds import polars_schema

JOURNAL = "rows.jsonl"
FRAME_ROWS = 64  # rows read into memory at a time when the artifact is written


class WrittenRow(NamedTuple):
    """A row in the file, which a power cut may still undo."""

    begin: int
    record: dict[str, Any]
    leftover: Path | None


class RowJournal:
    """Finished rows, and sums over them.

    Opening it cuts off what a kill left half-written. Only where each row begins is kept in memory.

    Args:
        build: whose rows.
        name: of the file.
    """

    def __init__(self, build: Build, name: str = JOURNAL) -> None:
        self.path = build.work / name
        self._kind = build.plan.kind
        self._journal = build.journal(name)
        self.begins: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        for begin, record in scan_journal(self.path):
            self._add(begin, record)

    def write(self, key: str, result: UnitResult) -> WrittenRow:
        """Write a row down: no kill of this process loses it any more."""
        record = {"key": key, "row": result.row, "counts": result.counts, "outcomes": result.outcomes}
        if result.usage is not None:
            record["usage"] = result.usage
        return WrittenRow(self._journal.append(record), record, result.leftover)

    async def keep(self, row: WrittenRow) -> None:
        """Wait until a power cut can't undo a row either; only then it counts, and the unit's own journal is removed.

        Raises:
            OSError: the disk refused.
        """
        await self._journal.commit()
        self._add(row.begin, row.record)
        if row.leftover:
            row.leftover.unlink(missing_ok=True)

    def missing(self, units: Sequence[Unit], pilot: int | None) -> list[Unit]:
        """Return the units that have no row; with a pilot only as many as it still lacks."""
        missing = [unit for unit in units if unit.key not in self.begins]
        return missing if pilot is None else missing[: max(0, pilot - len(self.begins))]

    def frames(self, units: Sequence[Unit]) -> Iterator[pl.DataFrame]:
        """Yield the rows in the units' order, in frames of bounded size."""
        begins = [self.begins[unit.key] for unit in units if unit.key in self.begins]
        if not begins:
            return
        with self.path.open("rb") as file:
            for start in range(0, len(begins), FRAME_ROWS):
                rows = [read_record(file, begin)["row"] for begin in begins[start : start + FRAME_ROWS]]
                yield pl.DataFrame(rows, schema=polars_schema(self._kind))

    def close(self) -> None:
        self._journal.close()

    def _add(self, begin: int, record: dict[str, Any]) -> None:
        row = record["row"]
        self.begins[record["key"]] = begin
        self.counts.update(record["counts"])
        self.requests.update(record["outcomes"])
        used = record.get("usage", row)
        self.usage["requests"] += used.get("requests", 1)
        for name in ("prompt_tokens", "completion_tokens", "reasoning_tokens"):
            self.usage[name] += used.get(name) or 0
