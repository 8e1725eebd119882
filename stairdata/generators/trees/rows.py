"""From a searched tree to a row of kind `trees`."""

from __future__ import annotations

from typing import NamedTuple

from stairdata.recipe import Recipe
from stairdata.search import mcts
from stairdata_schemas.aliases import Row


class Prompt(NamedTuple):
    """The columns of a prompt that a tree needs."""

    prompt_id: str
    prompt: str
    task: str
    reference_answer: str | None


def tree_counts(tree: mcts.Tree) -> dict[str, int]:
    """Return what the manifest sums up."""
    return {
        "nodes": len(tree.nodes),
        "evaluations": tree.evaluations,
        "duplicate_steps": tree.duplicates,
        "cut_steps": tree.cut_steps,
        "control_token_steps": tree.control_token_steps,
    }


def tree_row(tree_id: str, prompt: Prompt, tree: mcts.Tree, recipe: Recipe, actor: str) -> Row:
    """Return the row, but for what its requests used up."""
    return {
        "tree_id": tree_id,
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.prompt,
        "task": prompt.task,
        "actor": actor,
        "round": recipe.trees.round,
        "nodes": [_node_row(node) for node in tree.nodes],
        "iterations": recipe.trees.iterations,
        "seed": recipe.seed,
        "judgements": _judgement_rows(tree) if recipe.trees.judge.keep_text else None,
    }


def _judgement_rows(tree: mcts.Tree) -> list[Row]:
    return [
        {"node_id": node.node_id, "rollout": rollout, "aspect": aspect, "text": text}
        for node in tree.nodes
        for rollout, rated in [(None, node.reward), *((index, pair[1]) for index, pair in enumerate(node.rollouts))]
        if rated is not None
        for aspect, text in rated.said
    ]


def _node_row(node: mcts.Node) -> Row:
    reward = node.reward
    return {
        "node_id": node.node_id,
        "parent_id": node.parent.node_id if node.parent else -1,
        "depth": node.depth,
        "step": node.step,
        "is_terminal": node.is_terminal,
        "visits": node.visits,
        "value_sum": node.value_sum,
        "prior": node.prior,
        "reward": reward.reward if reward else None,
        "helpfulness": reward.helpfulness if reward else None,
        "safety": reward.safety if reward else None,
        "rollouts": [
            {"text": text, "helpfulness": rated.helpfulness, "safety": rated.safety, "reward": rated.reward}
            for text, rated in node.rollouts
        ],
        "tokens": node.tokens,
    }
