"""Which part of a build's input a shard is."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stairdata.runs.units import Unit
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan
from stairdata_schemas.errors import ArtifactError, UsageError, quote
from stairdata_schemas.manifest import SHARD, ModelIdentity, Parent
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


class GroupRun(NamedTuple):
    """Units of one group that follow each other."""

    group: int
    size: int


class WholeBuild(BaseModel):
    """What decides the rows of the build in one piece, as `BuildPlan.as_json` says it."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    generator: str
    configuration: Json
    parents: list[Parent]
    models: list[ModelIdentity]
    inputs: dict[str, str]


class ShardNote(BaseModel):
    """What a shard's manifest says of it, so that the shards can be joined."""

    model_config = ConfigDict(extra="forbid")

    index: Annotated[int, Field(ge=1)]
    """From 1."""
    count: Annotated[int, Field(ge=1, le=MOST)]
    units: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=3)]]
    """Of the whole build: [size, times] for so many groups that come up one after the other, [size, 1, group] where one
    comes up again."""
    refused: dict[int, int] = {}
    """How many units have no row, by the ordinal of their run."""
    refused_before: int = 0
    """How many rows of the input never became units."""
    whole: WholeBuild

    @classmethod
    def read(cls, shard: Artifact) -> Self:
        """Read it from a manifest.

        Raises:
            ArtifactError: it isn't as `own_units` writes it.
        """
        try:
            return cls.model_validate(shard.manifest.details[SHARD])
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ArtifactError(
                f"{shard.reference}: what its manifest says of the shard is damaged at {quote(where)}; build this "
                "shard again"
            ) from None

    @property
    def total(self) -> int:
        """Units of the whole build."""
        return sum(size * times for size, times, *_ in self.units)

    def runs(self) -> Iterator[GroupRun]:
        """Yield the runs of the whole build's units in their order."""
        following = 0
        for size, times, *earlier in self.units:
            if earlier:
                yield GroupRun(earlier[0], size)
                continue
            yield from (GroupRun(number, size) for number in range(following, following + times))
            following += times


def own_units(build: Build, units: Sequence[Unit]) -> Sequence[Unit]:
    """Return the units of the shard that is built, and note in the manifest's details what a join needs to know.

    Units of one group, such as those of one input row, are in one shard.

    Raises:
        UsageError: the build asks about a part of its input alone, so that it can't be cut, or has too few rows.
    """
    shard = shard_of(build.plan)
    if shard is None:
        return units
    units_of = Counter(unit.shard_group for unit in units)
    groups = 1 + max(units_of, default=-1)
    if len(units_of) < groups or (len(set(units_of.values())) > 1 and any(unit.group is None for unit in units)):
        raise UsageError("--shard is for a build of all its input; leave out what asks about some of its rows alone")
    if groups < shard.count:
        raise UsageError(f"--shard {shard}: the input has {groups} rows, too few for {shard.count} shards; take fewer")
    whole = {key: value for key, value in build.plan.configuration.items() if key != SHARD}
    noted = ShardNote(
        index=shard.index,
        count=shard.count,
        units=_shorten(units),
        whole=WholeBuild.model_validate(replace(build.plan, configuration=whole).as_json()),
    )
    build.details[SHARD] = noted.model_dump(mode="json")
    seed = seed_of(build.plan.seeds)
    return [unit for unit in units if owner_of(unit.shard_group, shard.count, seed) == shard.index]


def note_refused(build: Build, units: Sequence[Unit], refused: Sequence[QuarantineRow]) -> None:
    """Note where a shard has no row for a unit: the quarantine, which says so too, is never published.

    Args:
        build: of the shard.
        units: of the whole build.
        refused: of the shard.
    """
    if SHARD in build.details:
        runs = groupby(units, key=lambda unit: unit.shard_group)
        run_of = {unit.number: run for run, (_, members) in enumerate(runs) for unit in members}
        numbers = Counter(run_of[row.row] for row in refused)
        build.details[SHARD]["refused"] = {str(number): count for number, count in sorted(numbers.items())}


def own_refused(build: Build, refused: Sequence[QuarantineRow]) -> Sequence[QuarantineRow]:
    """Return the rows that a build refuses before they are units: the first shard alone has them."""
    if SHARD not in build.details:
        return refused
    own = refused if build.details[SHARD]["index"] == 1 else []
    build.details[SHARD]["refused_before"] = len(own)
    return own


def seed_of(seeds: dict[str, int]) -> int:
    """Return the seed of a build that decides which shard a group belongs to."""
    return next(iter(seeds.values()), 0)


def _shorten(units: Sequence[Unit]) -> list[list[int]]:
    shortened: list[list[int]] = []
    following = 0
    for group, members in groupby(unit.shard_group for unit in units):
        size = len([*members])
        if group != following:
            shortened.append([size, 1, group])
            continue
        following += 1
        if shortened and len(shortened[-1]) == 2 and shortened[-1][0] == size:
            shortened[-1][1] += 1
        else:
            shortened.append([size, 1])
    return shortened
