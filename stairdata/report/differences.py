"""What differs between two artifacts of one kind: rows by key, distributions, and how they were made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stairdata.report.measures import NODE_VALUE, Numbers, classes, figures
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError
from stairdata_schemas.kinds import row_schema
from stairdata_schemas.manifest import Manifest

MISSING = "(not there)"
PAIR_KINDS = ("preference_pairs", "prm_pairs")
UNCHANGED = 1e-9
"""Largest difference of values that rounding may make."""


class Shift(NamedTuple):
    """How a figure's distribution moved."""

    name: str
    count_a: int
    count_b: int
    mean_a: float | None
    mean_b: float | None
    median_a: float | None
    median_b: float | None
    distance: float | None
    """Kolmogorov-Smirnov distance: the largest difference between the two shares of values up to any point, 0 to 1."""


class Differences(NamedTuple):
    """All that differs from A to B."""

    a: str
    b: str
    rows: dict[str, int]
    changed_columns: dict[str, int]
    shifts: list[Shift]
    classes: dict[str, dict[str, tuple[int, int]]]
    recipe: dict[str, tuple[Any, Any]]
    moved: dict[str, float | None] = {}  # noqa: RUF012 - never changed
    """How values of nodes and pairs that both have moved; empty for other kinds."""

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {**self._asdict(), "shifts": [shift._asdict() for shift in self.shifts]}


def compare(a: Artifact, b: Artifact) -> Differences:
    """Compare two artifacts.

    Raises:
        UsageError: they are of different kinds.
    """
    if a.kind != b.kind:
        raise UsageError(f"{a.reference} and {b.reference} are of different kinds; compare two of one kind")
    rows = _compare_rows(a, b)
    return Differences(
        a=a.reference,
        b=b.reference,
        rows=rows,
        changed_columns=_changed_columns(a, b) if rows["changed"] else {},
        shifts=_shifts(a, b),
        classes=_classes(a, b),
        recipe=_recipe(a.manifest, b.manifest),
        moved=_moved_values(a, b) if a.kind == "trees" else _moved_pairs(a, b) if a.kind in PAIR_KINDS else {},
    )


def _compare_rows(a: Artifact, b: Artifact) -> dict[str, int]:
    keys, columns = _columns(a)
    both = _hashes(a, keys, columns).join(_hashes(b, keys, columns), on=keys, suffix="_b")
    counts = both.select(same=(pl.col("hash") == pl.col("hash_b")).sum(), both=pl.len()).collect(engine="streaming")
    shared, same = counts["both"][0], counts["same"][0]
    return {
        "a": a.manifest.rows,
        "b": b.manifest.rows,
        "added": b.manifest.rows - shared,
        "removed": a.manifest.rows - shared,
        "changed": shared - same,
        "same": same,
    }


def _columns(artifact: Artifact) -> tuple[list[str], list[str]]:
    schema = row_schema(artifact.kind)
    keys = schema.primary_key()
    return keys, [name for name in schema.column_names() if name not in keys]


def _hashes(artifact: Artifact, keys: list[str], columns: list[str]) -> pl.LazyFrame:
    """Return a row's key and a hash of its other columns; hashes are compared inside this process alone."""
    parts = [pl.col(name).hash(number) for number, name in enumerate(columns)]
    return artifact.scan().select(*keys, hash=pl.struct(parts).hash() if parts else pl.lit(0))


def _changed_columns(a: Artifact, b: Artifact) -> dict[str, int]:
    keys, columns = _columns(a)
    found = {}
    for name in columns:
        both = _hashes(a, keys, [name]).join(_hashes(b, keys, [name]), on=keys, suffix="_b")
        count = both.select((pl.col("hash") != pl.col("hash_b")).sum()).collect(engine="streaming").item()
        if count:
            found[name] = count
    return found


def _moved_values(a: Artifact, b: Artifact) -> dict[str, float | None]:
    """Compare the values of nodes that are the same ones in both, by tree, number and step."""
    node = pl.col("nodes").struct
    of_a, of_b = (
        each.scan()
        .select("tree_id", "nodes")
        .explode("nodes")
        .select("tree_id", node.field("node_id"), node.field("step").hash().alias("step"), value=NODE_VALUE)
        .filter(pl.col("value").is_finite())
        for each in (a, b)
    )
    both = of_a.join(of_b, on=["tree_id", "node_id", "step"], suffix="_b")
    return _changes(both, "value", "nodes with a value in both", "values that changed")


def _moved_pairs(a: Artifact, b: Artifact) -> dict[str, float | None]:
    """Compare the pairs of both, and count those that are turned round in the other one."""
    sides, rest = ["chosen_node_id", "rejected_node_id"], ["tree_id", "granularity"]
    of_a, of_b = (each.scan().select("pair_id", "margin", *sides, *rest) for each in (a, b))
    turned = of_a.join(of_b, left_on=[*sides, *rest], right_on=[*reversed(sides), *rest], how="semi")
    count = turned.select(pl.len()).collect(engine="streaming").item()
    both = of_a.join(of_b, on="pair_id", suffix="_b")
    return {"pairs turned round": count} | _changes(both, "margin", "pairs in both", "margins that changed")


def _changes(both: pl.LazyFrame, name: str, shared: str, changed: str) -> dict[str, float | None]:
    change = (pl.col(f"{name}_b") - pl.col(name)).abs()
    found = both.select(shared=pl.len(), changed=(change > UNCHANGED).sum(), mean=change.mean()).collect()
    count, moved, mean = found.row(0)
    return {shared: count, changed: moved, "mean change": mean}


def _shifts(a: Artifact, b: Artifact) -> list[Shift]:
    return [
        Shift(name, len(of_a), len(of_b), *_means(of_a, of_b), _distance(of_a, of_b))
        for (name, of_a), (_, of_b) in zip(figures(a), figures(b), strict=True)
    ]


def _means(a: Numbers, b: Numbers) -> tuple[float | None, float | None, float | None, float | None]:
    means = [float(np.mean(values)) if len(values) else None for values in (a, b)]
    medians = [float(np.median(values)) if len(values) else None for values in (a, b)]
    return means[0], means[1], medians[0], medians[1]


def _distance(a: Numbers, b: Numbers) -> float | None:
    if not len(a) or not len(b):
        return None
    a, b = np.sort(a), np.sort(b)
    points = np.concatenate([a, b])
    shares = (np.searchsorted(values, points, side="right") / len(values) for values in (a, b))
    return float(np.abs(np.subtract(*shares)).max())


def _classes(a: Artifact, b: Artifact) -> dict[str, dict[str, tuple[int, int]]]:
    of_a, of_b = classes(a), classes(b)
    found = {}
    for column, counts in of_a.items():
        names = list(dict.fromkeys([*counts, *of_b[column]]))
        found[column] = {name: (counts.get(name, 0), of_b[column].get(name, 0)) for name in names}
    return found


def _recipe(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    of_a, of_b = _made(a), _made(b)
    names = sorted({*of_a, *of_b})
    pairs = {name: (of_a.get(name, MISSING), of_b.get(name, MISSING)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _made(manifest: Manifest) -> dict[str, Any]:
    """Flatten what a manifest says of how the rows were made."""
    made: dict[str, Any] = {"generator": manifest.generator, "stairdata": manifest.stairdata_version}
    made |= dict(_flat(manifest.configuration))
    made |= {f"seed of {name}": seed for name, seed in manifest.seeds.items()}
    for parent in manifest.parents:
        made[f"parent {parent.kind}"] = f"{parent.version} ({parent.content_hash[:16]})"
    for model in manifest.models:
        made[f"{model.role}"] = f"{model.name} ({model.revision or model.tokenizer_hash or 'no revision'})"
    return made


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            flat += _flat(inner, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", inner))
    return flat
