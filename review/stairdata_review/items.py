"""What is reviewed: pairs, best trajectories of trees, rows of structured_cot, each as one item."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError

PAIR_KINDS = ("preference_pairs", "prm_pairs")
ANSWER_KINDS = ("trees", "structured_cot")
ROWS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """One thing to review."""

    item_id: str
    prompt: str
    prefix: str
    """What both sides of a pair share; empty at the root, and for answers."""
    texts: dict[str, str]
    """The compared steps by their side, chosen and rejected; of an answer, the whole of it as `answer`."""
    facts: Json
    """What is known of it: margin, depth, task, iteration, values; null where unknown."""


def check_kind(artifact: Artifact) -> None:
    """Refuse kinds that can't be reviewed.

    Raises:
        UsageError: another kind.
    """
    if artifact.kind not in (*PAIR_KINDS, *ANSWER_KINDS):
        known = ", ".join((*PAIR_KINDS, *ANSWER_KINDS))
        raise UsageError(f"{artifact.reference} can't be reviewed; kinds that can are {known}")


def item_ids(artifact: Artifact) -> pl.DataFrame:
    """Return `row` and `item_id` of all items of an artifact.

    The id is pair_id, tree_id or prompt_id; where a prompt has several answers, prompt_id, a slash and the first 16 hex
    digits of the completion's sha256.
    """
    check_kind(artifact)
    if artifact.kind == "structured_cot":
        return _ids_of_answers(artifact)
    key = "tree_id" if artifact.kind == "trees" else "pair_id"
    return artifact.scan().select(pl.int_range(pl.len()).alias("row"), item_id=key).collect()


def _ids_of_answers(artifact: Artifact) -> pl.DataFrame:
    lazy = artifact.scan().select("prompt_id", "completion", alone=pl.len().over("prompt_id") == 1)
    ids = [
        prompt_id if alone else f"{prompt_id}/{hashlib.sha256(completion.encode()).hexdigest()[:16]}"
        for prompt_id, completion, alone in lazy.collect().iter_rows()
    ]
    return pl.DataFrame({"item_id": ids}, schema={"item_id": pl.String}).with_row_index("row")


def read_items(artifact: Artifact, chosen: pl.DataFrame) -> Iterator[ReviewItem]:
    """Yield items in the order of a frame of `row` and `item_id`."""
    make = {"trees": _of_tree, "structured_cot": _of_answer}.get(artifact.kind, _of_pair)
    for part in chosen.iter_slices(ROWS_AT_ONCE):
        numbers = part["row"].cast(pl.Int64)
        lazy = artifact.scan().with_columns(row=pl.int_range(pl.len()))
        rows = {row["row"]: row for row in lazy.filter(pl.col("row").is_in(numbers.implode())).collect().to_dicts()}
        for number, item_id in zip(numbers, part["item_id"], strict=True):
            yield make(item_id, rows[number])


def _of_pair(item_id: str, row: Row) -> ReviewItem:
    length = row["prefix_length"]
    facts = {name: row[name] for name in ("margin", "depth", "task", "chosen_value", "rejected_value")}
    return ReviewItem(
        item_id,
        row["prompt"],
        row["chosen"][:length],
        {side: row[side][length:] for side in ("chosen", "rejected")},
        {**facts, "iteration": row["round"]},
    )


def _of_answer(item_id: str, row: Row) -> ReviewItem:
    return ReviewItem(item_id, row["prompt"], "", {"answer": row["completion"]}, {"task": row["task"]})


def _of_tree(item_id: str, row: Row) -> ReviewItem:
    path = best_path(row["nodes"])
    last = path[-1] if path else None
    text = "".join(node["step"] for node in path)
    if last and not last["is_terminal"] and last["rollouts"]:  # the search ended before the answer did
        text += max(last["rollouts"], key=lambda rollout: rollout["reward"])["text"]
    facts = {"task": row["task"], "iteration": row["round"], "value": _value(last) if last else None}
    return ReviewItem(item_id, row["prompt"], "", {"answer": text}, {**facts, "depth": len(path)})


def best_path(nodes: list[Row]) -> list[Row]:
    """Follow the child of highest value from below the root to a leaf; ties go to more visits, then the older."""
    children: dict[int, list[Row]] = {}
    for node in nodes:
        if node["visits"]:
            children.setdefault(node["parent_id"], []).append(node)
    path, at = [], 0
    while at in children:
        path.append(max(children[at], key=lambda node: (_value(node), node["visits"], -node["node_id"])))
        at = path[-1]["node_id"]
    return path


def _value(node: Row) -> float:
    if node["is_terminal"] and node["reward"] is not None:
        return float(node["reward"])
    return float(node["value_sum"] / node["visits"])
