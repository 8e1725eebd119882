"""A build in a process of its own, for the tests that kill it or wait for its lock.

python builder_process.py ROOT hold      begins a build, says so, and holds its lock until stdin is closed
python builder_process.py ROOT kill N    builds, and is killed by SIGKILL just before its Nth rename
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from stairdata_schemas import identity, writing
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, begin_build
from stairdata_schemas.files import read_journal
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.quarantine import QuarantineRow

UNITS = 6
PLAN = BuildPlan("prompts", "killed/1", {"units": UNITS})
BROKEN_UNIT = 4
REFUSED = QuarantineRow("in.jsonl", 9, "not_json", "{")


def row(unit: int) -> dict[str, Any]:
    text = f"prompt {unit}"
    return {
        "prompt_id": identity.prompt_id(text),
        "prompt": text,
        "task": "chatter" if unit == BROKEN_UNIT else "safety",
        "source": "tests",
    }


def expected_rows() -> list[str]:
    return sorted(row(unit)["prompt_id"] for unit in range(UNITS) if unit != BROKEN_UNIT)


def run(root: Path) -> tuple[Artifact, int]:
    """Build, or finish what a killed process began; return the artifact and how many units had to be done."""
    build = begin_build(PLAN, root)
    if isinstance(build, Artifact):
        return build, 0
    with build:
        done = work(build)
        return build.finish(frames(build), [REFUSED], max_quarantine=0.5), done


def work(build: Build) -> int:
    path = build.work / "units.jsonl"
    with closing(build.journal(path.name)) as journal:
        missing = set(range(UNITS)) - {record["unit"] for record in read_journal(path)}
        for unit in sorted(missing):
            journal.append({"unit": unit, "row": row(unit)})
    return len(missing)


def frames(build: Build) -> Iterator[pl.DataFrame]:
    """Give the journal's rows in two pieces, which are two shards."""
    rows = [record["row"] for record in read_journal(build.work / "units.jsonl")]
    for piece in (rows[: UNITS // 2], rows[UNITS // 2 :]):
        yield pl.DataFrame(piece, schema=polars_schema("prompts"))


def hold(root: Path) -> None:
    build = begin_build(PLAN, root)
    assert isinstance(build, Build)
    with build:
        sys.stdout.write("locked\n")
        sys.stdout.flush()
        sys.stdin.read()


def kill_at(step: int) -> None:
    """Let the process be killed just before its `step`-th rename."""
    count = 0

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                die()
            return original(*arguments, **options)

        setattr(os, name, call)

    counted("replace")
    counted("rename")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


if __name__ == "__main__":
    writing.SHARD_BYTES = 1
    if sys.argv[2] == "hold":
        hold(Path(sys.argv[1]))
    else:
        kill_at(int(sys.argv[3]))
        run(Path(sys.argv[1]))
