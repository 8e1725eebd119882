"""Paths of search trees, from the first step to a node without children."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import polars as pl

from stairdata_schemas.aliases import Json

TREES_AT_ONCE = 32
_FIELDS = ("node_id", "parent_id", "depth", "step", "is_terminal", "visits", "value_sum", "prior", "reward")
LIGHT_NODES = pl.col("nodes").list.eval(pl.struct(pl.element().struct.field(name) for name in _FIELDS))
"""The column `nodes` without rollouts: their texts are most of a tree."""


def paths_to_leaves(nodes: Iterable[Json]) -> Iterator[list[Json]]:
    """Yield a path for each node without children, in the order of the nodes: from below the root down to it.

    Args:
        nodes: of one tree, or those of its nodes whose parents are among them, too.
    """
    by_id = {node["node_id"]: node for node in nodes}
    inner = {node["parent_id"] for node in by_id.values()}
    for leaf in sorted(by_id.keys() - inner - {0}):
        path: list[Json] = []
        at = leaf
        while at > 0:
            path.append(by_id[at])
            at = by_id[at]["parent_id"]
        yield path[::-1]
