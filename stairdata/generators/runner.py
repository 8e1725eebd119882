"""One way to run many units of work against a server: bounded, resumable, and each failure typed.

A unit (a prompt, a tree) becomes one row. Rows are journaled as they come, so that a kill loses none; the next
run skips what stands in the journal. A unit whose request fails for good is refused with the history of its
outcomes and tried again by the next run.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.generators.options import Progress
from stairdata.llm.outcomes import RequestFailedError
from stairdata_schemas.building import Build, Refused
from stairdata_schemas.files import read_journal
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import Usage

JOURNAL = "rows.jsonl"
FRAME_ROWS = 256

Row = dict[str, Any]


class UnitFailedError(Exception):
    """A unit that got answers but can't become a row: the rule it broke, and the text that broke it."""

    def __init__(self, rule: str, raw: str) -> None:
        self.rule = rule
        self.raw = raw
        super().__init__(rule)


class Unit(NamedTuple):
    """A piece of work: its key, its ordinal in the input, and what quarantine shows of it."""

    key: str
    number: int
    text: str


class Done(NamedTuple):
    """What work makes of a unit: its row, and counts that the manifest sums up."""

    row: Row
    counts: dict[str, int]
    leftover: Path | None = None
    """The unit's own journal, to be removed once its row is safe."""


Work = Callable[[Unit], Awaitable[Done]]


class RunResult(NamedTuple):
    """What a run leaves."""

    refused: list[Refused]
    outcomes: dict[str, int]


async def run_units(
    build: Build,
    units: Sequence[Unit],
    open_work: Callable[[], AbstractAsyncContextManager[Work]],
    concurrency: int,
    progress: Progress,
) -> RunResult:
    """Turn units into journaled rows, at most `concurrency` at a time, in the order given.

    What `open_work` opens (a server, say) is opened only where something is left to do.

    Raises:
        ServerError: the server is gone; what is finished is kept.
    """
    path = build.work / JOURNAL
    known = {record["key"] for record in read_journal(path)}
    journal = build.journal(JOURNAL)
    refused: list[Refused] = []
    missing = [unit for unit in units if unit.key not in known]
    waiting = iter(missing)
    finished = len(units) - len(missing)

    async def worker(work: Work) -> None:
        nonlocal finished
        for unit in waiting:
            try:
                done = await work(unit)
                journal.append({"key": unit.key, "row": done.row, "counts": done.counts}, durable=True)
                if done.leftover:
                    done.leftover.unlink()
            except (RequestFailedError, UnitFailedError) as error:
                refused.append(_refusal(build, unit, error))
            finished += 1
            progress(build.plan.kind, finished, len(units))

    progress(build.plan.kind, finished, len(units))
    try:
        if missing:
            async with open_work() as work, asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker(work))
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    finally:
        journal.close()
    refused.sort(key=lambda refusal: refusal.row)
    outcomes = Counter(refusal.rule for refusal in refused)
    return RunResult(refused, {"ok": len(units) - len(refused), **dict(sorted(outcomes.items()))})


def journaled_frames(build: Build, units: Sequence[Unit]) -> Iterator[pl.DataFrame]:
    """Yield the journaled rows in the units' order, in frames of bounded size."""
    path = build.work / JOURNAL
    offsets = dict(_offsets(path))
    keys = [unit.key for unit in units if unit.key in offsets]
    schema = polars_schema(build.plan.kind)
    if not keys:
        return
    with path.open("rb") as file:
        for start in range(0, len(keys), FRAME_ROWS):
            rows = []
            for key in keys[start : start + FRAME_ROWS]:
                file.seek(offsets[key])
                rows.append(json.loads(file.readline()[9:])["row"])
            yield pl.DataFrame(rows, schema=schema)


def usage_of(build: Build, units: Sequence[Unit]) -> Usage:
    """Add up what the journaled rows used; a row without a count of requests took one."""
    total: Counter[str] = Counter()
    for frame in journaled_frames(build, units):
        total["requests"] += len(frame) if "requests" not in frame.columns else int(frame["requests"].sum())
        for name in {"prompt_tokens", "completion_tokens"} & set(frame.columns):
            total[name] += int(frame[name].sum())
    return Usage(**total)


def counts_of(build: Build) -> dict[str, int]:
    """Add up the counts of the journaled units."""
    total: Counter[str] = Counter()
    for record in read_journal(build.work / JOURNAL):
        total.update(record["counts"])
    return dict(total)


def _offsets(path: Path) -> Iterator[tuple[str, int]]:
    # opening the journal for writing cut it after its last whole record
    position = 0
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line[9:])["key"], position
            position += len(line)


def _refusal(build: Build, unit: Unit, error: RequestFailedError | UnitFailedError) -> Refused:
    if isinstance(error, UnitFailedError):
        return Refused(build.plan.kind, unit.number, error.rule, error.raw)
    raw = json.dumps(
        {"text": unit.text, "outcomes": [str(outcome) for outcome in error.outcomes], "detail": error.detail},
        ensure_ascii=False,
    )
    return Refused(build.plan.kind, unit.number, str(error.outcomes[-1]), raw)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the group; the others are its echoes."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
