"""Trees that were grown before: what of them can be rated again, and their rows one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from stairdata.generators.pairs.forest import (
    VISITS_ADD_UP,
    explode_nodes,
    own_evaluations,
    read_trees,
    sound_trees,
)
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats.parquet import iterate_batches, open_parquet
from stairdata_schemas.quarantine import QuarantineRow

if TYPE_CHECKING:
    import pyarrow as pa


class StoredTree(NamedTuple):
    """What is known of a tree without its texts."""

    tree_id: str
    prompt_id: str
    prompt: str
    task: str | None
    answers: int
    """Answers that were rated: rollouts, and terminal nodes."""


def survey(trees: Artifact, limit: int | None) -> list[StoredTree]:
    """Return the trees of an artifact, each of which has the text of every answer that its search evaluated.

    Args:
        trees: an artifact of kind trees.
        limit: trees at most.

    Raises:
        InputError: a tree that lacks rollouts, such as an imported one, or that is none; says which row.
    """
    found: list[StoredTree] = []
    wanted = min(trees.manifest.rows, limit or trees.manifest.rows)
    for whole in read_trees(trees):
        if len(found) >= wanted:
            break
        frame = whole.head(wanted - len(found))
        _check_sound(frame, len(found), trees)
        answers = _count_answers(frame, len(found), trees)
        rows = frame.select("tree_id", "prompt_id", "prompt", "task", answers=pl.Series(answers))
        found += [StoredTree(*row) for row in rows.iter_rows()]
    return found


def _check_sound(frame: pl.DataFrame, first: int, trees: Artifact) -> None:
    refused: list[QuarantineRow] = []
    sound_trees(frame, first, trees, refused)
    other = next((each for each in refused if each.rule != VISITS_ADD_UP), None)
    if other is not None:
        raise InputError(f"row {other.row} of {trees.reference} is no sound tree ({other.rule}); build it again")


def _count_answers(frame: pl.DataFrame, first: int, trees: Artifact) -> np.ndarray:
    """Count each tree's answers, and check that they are there."""
    nodes = explode_nodes(frame)
    rollouts = nodes["rollouts"].list.len().fill_null(0).to_numpy()
    is_terminal, evaluations = nodes["is_terminal"].to_numpy(), own_evaluations(nodes)
    lacking = np.flatnonzero(~is_terminal & (evaluations != rollouts))
    if len(lacking):
        node = nodes.row(int(lacking[0]), named=True)
        raise InputError(
            f"row {first + node['tree']} of {trees.reference} (tree {quote(frame['tree_id'][node['tree']])}) can't be "
            f"rated again: node {node['node_id']} was evaluated {evaluations[lacking[0]]} times and has the texts of "
            f"{rollouts[lacking[0]]} rollouts; name trees that were grown by stairdata, since others lack them"
        )
    is_rated = ((nodes["visits"] > 0) | nodes["reward"].is_not_null()).to_numpy()
    answers = np.where(is_terminal, is_rated, rollouts)
    return np.bincount(nodes["tree"].to_numpy(), weights=answers, minlength=len(frame)).astype(np.int64)


class TreeReader:
    """Reads whole rows in rising order, a piece of a file in memory at a time."""

    def __init__(self, trees: Artifact) -> None:
        self._pieces = _pieces(trees)
        self._piece: pa.RecordBatch | None = None
        self._first = 0

    def read(self, number: int) -> Row:
        """Return a row; its number is not below that of the row before."""
        while self._piece is None or number >= self._first + self._piece.num_rows:
            self._first += self._piece.num_rows if self._piece is not None else 0
            self._piece = next(self._pieces)
        row: Row = self._piece.slice(number - self._first, 1).to_pylist()[0]
        return row


def _pieces(trees: Artifact) -> Iterator[pa.RecordBatch]:
    for path in trees.data_files:
        with open_parquet(path) as file:
            columns = [name for name in file.schema_arrow.names if name != "judgements"]  # of the judge before
        yield from iterate_batches(path, columns=columns)
