"""Bringing items to reviewers: nothing twice, nothing lost, whenever it is interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stairdata_review.guidelines import CONTACT
from stairdata_review.items import read_items
from stairdata_review.rounds.client import Argilla
from stairdata_review.rounds.datasets import WORKSPACE, default_name, ensure_round, ensure_workspace
from stairdata_review.rounds.settings import layout_of, record_of
from stairdata_review.selection import select
from stairdata_schemas.aliases import CountProgress, Json
from stairdata_schemas.artifacts import Artifact

BATCH_RECORDS = 500
BATCH_BYTES = 900_000
"""Proxies in front of a server often refuse bodies over 1 MB."""


@dataclass(frozen=True, slots=True)
class RoundOptions:
    """What goes to reviewers, and how."""

    root: Path
    selection: str = "all"
    limit: int | None = None
    seed: int = 42
    workspace: str = WORKSPACE
    dataset: str | None = None
    min_submitted: int | None = None
    contact: str = CONTACT


class PushCounts(NamedTuple):
    """What a push did."""

    dataset: str
    added: int
    there_before: int
    shortened: int
    """Items of which a text was too long to show."""


def push(argilla: Argilla, artifact: Artifact, options: RoundOptions, progress: CountProgress) -> PushCounts:
    """Bring the selected items of an artifact to a server; those that are there already stay as they are.

    Raises:
        ReviewError: the server can't be reached or refuses; what was sent stays, and the same push goes on.
        UsageError: a selection or kind that isn't there.
    """
    chosen = select(artifact, options.selection, options.limit, options.seed, options.root)
    argilla.check()
    workspace = ensure_workspace(argilla, options.workspace)
    layout = layout_of(artifact.kind, options.contact)
    name = options.dataset or default_name(artifact)
    review_round = ensure_round(
        argilla, workspace, name, artifact, layout, min_submitted=options.min_submitted, seed=options.seed
    )
    seed = int(review_round.about.get("seed", options.seed))  # two pushes must not turn a record round
    there = {record["external_id"] for page in argilla.records(review_round.dataset_id) for record in page}
    missing = chosen.filter(~pl.col("item_id").is_in(pl.Series(list(there), dtype=pl.String).implode()))
    added = shortened = 0
    records = (record_of(item, artifact.kind, seed) for item in read_items(artifact, missing))
    for batch in batches(records):
        argilla.put(f"/datasets/{review_round.dataset_id}/records/bulk", {"items": [record for record, _ in batch]})
        added += len(batch)
        shortened += sum(left_out > 0 for _, left_out in batch)
        progress(f"pushing to {name}", added, len(missing))
    return PushCounts(name, added, len(chosen) - len(missing), shortened)


CutRecord = tuple[Json, int]
"""A record, and how many characters were left out of it."""


def batches(records: Iterable[CutRecord]) -> Iterator[list[CutRecord]]:
    """Put records together, at most 500 and at most about 900 kB of JSON at a time."""
    batch: list[CutRecord] = []
    size = 0
    for record in records:
        length = len(json.dumps(record[0]))
        if batch and (len(batch) == BATCH_RECORDS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch
