"""Trees, prompts and pairs in the form of the published code (github thu-ml/STAIR), read and written.

Verified in the published sources: a tree file is a JSON list, one object a tree. Its key `tree_size` holds the number
of nodes; every other key is a node's place, "0" at the root and "0.1.2" for child 2 of child 1 of the root, in
breadth-first order. A node has `prompt`, `trajectory` (the steps from the root to it), `is_terminal`,
`is_valid_selected`, `depth`, `visited_times`, `reward` (of a terminal node, else null), `value_sum`, `true_value`
(value_sum / visited_times, null where unvisited) and `p` (PUCB's prior, 1 when served by vLLM). Prompt files are lists
of `question`, `type` (safety or helpfulness) and, where there is one, `ground_truth`. Pairs are JSONL.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NamedTuple

from stairdata_schemas import grammar
from stairdata_schemas.aliases import Row
from stairdata_schemas.formats.json_list import Duplicates
from stairdata_schemas.kinds import VALUE_TOLERANCE
from stairdata_schemas.text.visible import is_blank

ROOT = "0"
SIZE = "tree_size"
# What the published configuration ends answers with besides <|/Output|>, and the same of other model families.
END_OF_TURN = ("<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>")
_NODE_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "trajectory": (list,),
    "is_terminal": (bool,),
    "depth": (int,),
    "visited_times": (int,),
    "value_sum": (int, float),
}
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "reward": (int, float, type(None)),
    "true_value": (int, float, type(None)),
    "p": (int, float, type(None)),
    "is_valid_selected": (bool,),
}
_LARGEST_COUNT = 2**31 - 1


class BrokenError(Exception):
    """An element that can't become a row: the rule it breaks."""

    def __init__(self, rule: str, field: str = "") -> None:
        self.rule = rule
        self.field = field
        super().__init__(rule)


class FileNode(NamedTuple):
    """A node of the file: where it stands, and what it says."""

    place: tuple[int, ...]
    node: Row


class Losses(Counter[str]):
    """What could not be taken over, by what it is."""


def prompt_of(element: Any) -> str:
    """Return the prompt of a tree, to name it by.

    Raises:
        BrokenError: it has none.
    """
    root = element.get(ROOT) if isinstance(element, dict) else None
    prompt = root.get("prompt") if isinstance(root, dict) else None
    if isinstance(element, Duplicates):
        raise BrokenError("duplicate_node_ids", element.key)
    if not isinstance(element, dict):
        raise BrokenError("not_an_object")
    if root is None:
        raise BrokenError("no_root", ROOT)
    if isinstance(root, Duplicates) or not isinstance(prompt, str):
        raise BrokenError("wrong_type", f"{ROOT}.prompt")
    if is_blank(prompt):
        raise BrokenError("blank_prompt", f"{ROOT}.prompt")
    return prompt


def nodes_of(element: Row, losses: Losses, endings: Counter[tuple[bool, str]]) -> list[Row]:
    """Turn a tree of the published form into our nodes, parents first, ids dense in breadth-first order.

    Args:
        element: the object of one tree.
        losses: what could not be taken over, added to.
        endings: how the steps of terminal nodes end: (closed by `<|/Output|>`, end-of-turn text), added to.

    Raises:
        BrokenError: with the rule the tree breaks.
    """
    places = sorted((_place(tag, node) for tag, node in element.items() if tag != SIZE), key=_breadth_first)
    known = {place: number for number, (place, _) in enumerate(places)}
    if len(known) != len(places):
        raise BrokenError("duplicate_node_ids")
    prompt = prompt_of(element)
    rows: list[Row] = []
    for number, (place, node) in enumerate(places):
        parent = known.get(place[:-1], -1)
        if len(place) > 1 and parent < 0:
            raise BrokenError("orphan_node", _tag(place))
        _check(place, node, prompt, places[parent].node if parent >= 0 else None)
        rows.append(_row(number, parent, node, endings))
    _note_losses(element, places, losses)
    return rows


def _breadth_first(place: FileNode) -> tuple[int, tuple[int, ...]]:
    return len(place.place), place.place


def _tag(place: tuple[int, ...]) -> str:
    return ".".join(map(str, place))


def _place(tag: str, node: Any) -> FileNode:
    parts = tag.split(".")
    if parts[0] != ROOT or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise BrokenError("not_a_node_id", tag)
    place = tuple(map(int, parts))
    if isinstance(node, Duplicates):
        raise BrokenError("duplicate_field", f"{tag}.{node.key}")
    if _tag(place) != tag or not isinstance(node, dict):
        raise BrokenError("not_a_node_id" if isinstance(node, dict) else "wrong_type", tag)
    return FileNode(place, node)


def _check(place: tuple[int, ...], node: Row, prompt: str, parent: Row | None) -> None:
    tag = _tag(place)
    _check_types(tag, node)
    _check_numbers(tag, node)
    steps = node["trajectory"]
    if node["prompt"] != prompt:
        raise BrokenError("one_prompt_a_tree", f"{tag}.prompt")
    if node["depth"] != len(place) - 1:
        raise BrokenError("depth_is_one_below_the_parent", f"{tag}.depth")
    if len(steps) != node["depth"] or (parent is not None and steps[:-1] != parent["trajectory"]):
        raise BrokenError("trajectory_continues_the_parents", f"{tag}.trajectory")
    if parent is not None and parent["is_terminal"]:
        raise BrokenError("terminal_nodes_have_no_children", tag)


def _check_types(tag: str, node: Row) -> None:
    for field, types in _NODE_TYPES.items():
        if field not in node:
            raise BrokenError("missing_field", f"{tag}.{field}")
        if not _is_a(node[field], types):
            raise BrokenError("wrong_type", f"{tag}.{field}")
    for field, types in _OPTIONAL.items():
        if field in node and not _is_a(node[field], types):
            raise BrokenError("wrong_type", f"{tag}.{field}")
    if not all(isinstance(step, str) for step in node["trajectory"]):
        raise BrokenError("wrong_type", f"{tag}.trajectory")
    if not is_storable(*node["trajectory"][-1:]):
        raise BrokenError("not_unicode", f"{tag}.trajectory")


def is_storable(*texts: str) -> bool:
    """Return whether texts are whole Unicode: JSON escapes may bring in lone surrogates, which no file can hold."""
    return all(text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text) for text in texts)


def _is_a(value: Any, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _check_numbers(tag: str, node: Row) -> None:
    for field in ("value_sum", "reward", "true_value", "p"):
        value = node.get(field)
        if value is not None and not _is_finite(value):
            raise BrokenError("not_a_number", f"{tag}.{field}")
    visits = node["visited_times"]
    if not 0 <= visits <= _LARGEST_COUNT:
        raise BrokenError("negative_visits" if visits < 0 else "too_many_visits", f"{tag}.visited_times")
    if not visits and node["value_sum"]:
        raise BrokenError("unvisited_nodes_have_no_value", f"{tag}.value_sum")
    mean = node["value_sum"] / visits if visits else None
    value = node.get("true_value", mean)
    if value is None or mean is None:
        if value is not mean:
            raise BrokenError("value_is_the_mean", f"{tag}.true_value")
    elif not _is_close(value, mean):
        raise BrokenError("value_is_the_mean", f"{tag}.true_value")
    reward = node.get("reward")
    if node["is_terminal"] and reward is not None and mean is not None and not _is_close(reward, mean):
        raise BrokenError("value_is_the_mean", f"{tag}.reward")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=VALUE_TOLERANCE, abs_tol=1e-9)


def _row(number: int, parent: int, node: Row, endings: Counter[tuple[bool, str]]) -> Row:
    step, ending = node["trajectory"][-1] if node["trajectory"] else "", ""
    if node["is_terminal"] and step:
        step, ending = without_end_of_turn(step)
        endings[grammar.closes_output(step), ending] += 1
    prior, reward = node.get("p"), node.get("reward")
    return {
        "node_id": number,
        "parent_id": parent,
        "depth": node["depth"],
        "step": step,
        "is_terminal": node["is_terminal"],
        "visits": node["visited_times"],
        "value_sum": float(node["value_sum"]),
        "prior": None if prior is None else float(prior),
        "reward": None if reward is None else float(reward),
        "rollouts": [],
    }


def without_end_of_turn(step: str) -> tuple[str, str]:
    """Cut a terminal step into its text and the end-of-turn text behind it."""
    for ending in END_OF_TURN:
        if step.endswith(ending):
            return step.removesuffix(ending), ending
    return step, ""


def _note_losses(element: Row, places: list[FileNode], losses: Losses) -> None:
    size = element.get(SIZE)
    if size is not None and size != len(places):
        losses["tree_size that is not the number of nodes (trees)"] += 1
    siblings: Counter[tuple[int, ...]] = Counter()
    for place, node in places:
        if place[-1] != siblings[place[:-1]] and len(place) > 1:
            losses["gaps in the numbering of children (nodes)"] += 1
        siblings[place[:-1]] += 1
        if node.get("is_valid_selected"):
            losses["is_valid_selected of a search under way (nodes)"] += 1
        for field in node.keys() - _NODE_TYPES.keys() - _OPTIONAL.keys():
            losses[f"unknown field {field[:40]!r} (nodes)"] += 1


def tree_element(prompt: str, nodes: list[Row], endings: dict[bool, str]) -> Row:
    """Write a tree in the published form.

    Args:
        prompt: the tree's prompt.
        nodes: our nodes, parents first.
        endings: end-of-turn text to put behind terminal steps, by whether they close with `<|/Output|>`.
    """
    tags: dict[int, str] = {}
    paths: dict[int, list[str]] = {}
    children: Counter[int] = Counter()
    written: dict[str, Row] = {}
    for node in sorted(nodes, key=lambda each: each["depth"]):
        number, parent = node["node_id"], node["parent_id"]
        tags[number] = f"{tags[parent]}.{children[parent]}" if parent >= 0 else ROOT
        children[parent] += 1
        step = node["step"]
        if node["is_terminal"] and step:
            step += endings.get(grammar.closes_output(step), "")
        paths[number] = [*paths[parent], step] if parent >= 0 else []
        written[tags[number]] = _published_node(prompt, paths[number], node)
    return {SIZE: len(nodes), **{tag: written[tag] for tag in sorted(written, key=_breadth_first_tag)}}


def _breadth_first_tag(tag: str) -> tuple[int, tuple[int, ...]]:
    place = tuple(map(int, tag.split(".")))
    return len(place), place


def _published_node(prompt: str, trajectory: list[str], node: Row) -> Row:
    visits = node["visits"]
    return {
        "prompt": prompt,
        "trajectory": trajectory,
        "is_terminal": node["is_terminal"],
        "is_valid_selected": False,  # what the search leaves on every node when it is done
        "depth": node["depth"],
        "visited_times": visits,
        "reward": node["reward"],
        "value_sum": node["value_sum"],
        "true_value": node["value_sum"] / visits if visits else None,
        "p": 1.0 if node["prior"] is None else node["prior"],
    }


def prompt_element(row: Row) -> Row:
    """Write a prompt in the published form."""
    element = {"question": row["prompt"], "type": row["task"]}
    return element if row["reference_answer"] is None else element | {"ground_truth": row["reference_answer"]}


def pair_line(row: Row) -> str:
    """Write a pair as a line of the published JSONL."""
    line = {
        "prompt": row["prompt"],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "chosen_score": row["chosen_value"],
        "rejected_score": row["rejected_value"],
        "chosen_is_terminal": row["chosen_is_terminal"],
        "rejected_is_terminal": row["rejected_is_terminal"],
        "chosen_visited_times": row["chosen_visits"],
        "rejected_visited_times": row["rejected_visits"],
    }
    return json.dumps(line, ensure_ascii=False) + "\n"
