"""Which part of a build's input a shard is."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from stairdata.runs.units import Unit
from stairdata_schemas.aliases import Json
from stairdata_schemas.building import Build, BuildPlan
from stairdata_schemas.errors import UsageError, quote
from stairdata_schemas.manifest import SHARD
from stairdata_schemas.quarantine import QuarantineRow

MOST = 100_000


@dataclass(frozen=True, slots=True)
class Shard:
    """One of so many disjoint parts of the input of a build."""

    index: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read I/N.

        Raises:
            UsageError: not so written, or out of range.
        """
        match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text, re.ASCII)
        if match is None:
            raise UsageError(f"--shard {quote(text)}: write I/N, such as 2/4 for the second of four shards")
        shard = cls(int(match[1]), int(match[2]))
        if not 1 <= shard.index <= shard.count <= MOST:
            raise UsageError(f"--shard {quote(text)}: I goes from 1 to N, and N to {MOST:,}")
        return shard


def owner_of(number: int, count: int, seed: int) -> int:
    """Return the index, from 1, of the shard that an input row belongs to.

    Each run of `count` rows has one row for each shard, in an order that depends on the seed: shards are of equal size,
    and none has all of what comes in a rhythm.

    Args:
        number: the row's, from 0.
        count: of shards.
        seed: of the build.
    """
    digest = hashlib.sha256(f"{seed}/shard/{number // count}".encode()).digest()
    return (number + int.from_bytes(digest[:8], "big")) % count + 1


def with_shard(plan: BuildPlan, shard: Shard | None) -> BuildPlan:
    """Return the plan of one shard of a build."""
    return plan if shard is None else replace(plan, configuration=plan.configuration | {SHARD: str(shard)})


def shard_of(plan: BuildPlan) -> Shard | None:
    """Return which shard a plan is of; None where it is of the whole."""
    text = plan.configuration.get(SHARD)
    return Shard.parse(text) if text is not None else None


def own_units(build: Build, units: Sequence[Unit]) -> Sequence[Unit]:
    """Return the units of the shard that is built, and note in the manifest's details what a join needs to know.

    Units of one input row, which have its number, are in one shard.

    Raises:
        UsageError: the build asks about a part of its input alone, so that it can't be cut, or has too few rows.
    """
    shard = shard_of(build.plan)
    if shard is None:
        return units
    inputs = 1 + max((unit.number for unit in units), default=-1)
    each, rest = divmod(len(units), inputs or 1)
    if rest or len({unit.number for unit in units}) < inputs:
        raise UsageError("--shard is for a build of all its input; leave out what asks about some of its rows alone")
    if inputs < shard.count:
        raise UsageError(f"--shard {shard}: the input has {inputs} rows, too few for {shard.count} shards; take fewer")
    whole = {key: value for key, value in build.plan.configuration.items() if key != SHARD}
    build.details[SHARD] = {
        "index": shard.index,
        "count": shard.count,
        "inputs": inputs,
        "units_of_an_input": each,
        "whole": replace(build.plan, configuration=whole).as_json(),
    }
    owner = owners(build.details[SHARD], build.plan.seeds)
    return [unit for unit in units if owner[unit.number] == shard.index]


def note_refused(build: Build, refused: Sequence[QuarantineRow]) -> None:
    """Note which input rows a shard has no row of: the quarantine, which says so too, is never published."""
    if SHARD in build.details:
        numbers = Counter(row.row for row in refused)
        build.details[SHARD]["refused"] = {str(number): count for number, count in sorted(numbers.items())}


def owners(noted: Json, seeds: dict[str, int]) -> list[int]:
    """Return the shard, from 1, of each input row of a build, from what `own_units` noted."""
    seed = next(iter(seeds.values()), 0)
    return [owner_of(number, noted["count"], seed) for number in range(noted["inputs"])]
