"""The answers in a stored tree, and the tree with other rewards: values change, the search stays what it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stairdata.search.reward import Reward
from stairdata_schemas.aliases import Row


class StoredAnswer(NamedTuple):
    """Where an answer stands in a tree."""

    node_id: int
    rollout: int | None
    """Index among the node's rollouts; None for a terminal node."""


def stored_answers(nodes: Sequence[Row]) -> dict[StoredAnswer, str]:
    """Return the text of every answer that was rated: of each rollout, and of terminal nodes."""
    paths: list[str] = []
    answers: dict[StoredAnswer, str] = {}
    for node in nodes:  # parents come first
        path = (paths[node["parent_id"]] if paths else "") + node["step"]
        paths.append(path)
        if node["is_terminal"] and (node["visits"] or node["reward"] is not None):
            answers[StoredAnswer(node["node_id"], None)] = path
        for index, rollout in enumerate(node["rollouts"]):
            answers[StoredAnswer(node["node_id"], index)] = path + rollout["text"]
    return answers


def with_rewards(nodes: Sequence[Row], rewards: Mapping[StoredAnswer, Reward]) -> list[Row]:
    """Return nodes with other rewards, and the values that follow: a sum needs no order of evaluations.

    Visits stay, and with them how often the reward of a terminal node counts: what the search chose by its own rewards.

    Args:
        nodes: of one tree, parents first.
        rewards: of all its `stored_answers`.
    """
    changed = [_rated(node, rewards) for node in nodes]
    for node in reversed(changed[1:]):  # children come after their parents
        changed[node["parent_id"]]["value_sum"] += node["value_sum"]
    return changed


def _rated(node: Row, rewards: Mapping[StoredAnswer, Reward]) -> Row:
    """Return a node with its own evaluations alone in its value."""
    whole = rewards.get(StoredAnswer(node["node_id"], None))
    of_rollouts = [rewards[StoredAnswer(node["node_id"], index)] for index in range(len(node["rollouts"]))]
    return node | {
        "value_sum": whole.reward * node["visits"] if whole else sum((each.reward for each in of_rollouts), 0.0),
        "rollouts": [old | _scores(new) for old, new in zip(node["rollouts"], of_rollouts, strict=True)],
        **(_scores(whole) if whole else {"reward": None, "helpfulness": None, "safety": None}),
    }


def _scores(reward: Reward) -> Row:
    return {"helpfulness": reward.helpfulness, "safety": reward.safety, "reward": reward.reward}


def judgement_rows(rewards: Mapping[StoredAnswer, Reward]) -> list[Row]:
    """Return what the judge wrote, as the column `judgements` has it."""
    return [
        {"node_id": place.node_id, "rollout": place.rollout, "aspect": aspect, "text": text}
        for place, reward in rewards.items()
        for aspect, text in reward.said
    ]
