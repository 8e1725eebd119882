"""A search with the caller's own policy: the same tree as the runner's search, and no nonsense taken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stairdata.search import mcts
from stairdata.search.custom_policy import search_tree
from stairdata_schemas.errors import UsageError

STEP = "<|Reasoning_step|>\nTitle: Step {0}:\nbody {0}\n<|/Reasoning_step|>\n\n"
OUTPUT = "<|Output|>\nFinal Answer:\n{0}\n<|/Output|>"


class Policy:
    """Continues with one more step and an answer; what it says depends on how often it was asked."""

    def __init__(self) -> None:
        self.prefixes: list[str] = []

    async def __call__(self, prefix: str, n: int) -> list[str]:
        self.prefixes.append(prefix)
        asked = len(self.prefixes)
        return [STEP.format(f"{asked}.{sample}") + OUTPUT.format(sample % 2) for sample in range(n)]


async def judge(answer: str) -> tuple[float, float]:
    return (0.5, 1.0) if OUTPUT.format(1) in answer else (0.0, -1.0)


def grow(policy: Any, rate: Any = judge, **options: Any) -> mcts.Tree:
    return asyncio.run(search_tree(policy, rate, **options))


def test_a_tree_is_grown_and_its_sums_hold() -> None:
    policy = Policy()
    tree = grow(policy, config=mcts.SearchConfig(iterations=30, samples=3, max_depth=3), count_tokens=len)
    assert tree.evaluations >= 30
    assert tree.root.visits == tree.evaluations
    for node in tree.nodes[1:]:
        assert node.tokens == len(node.step)
        assert node.visits >= sum(child.visits for child in node.children)
        assert -3 <= node.value <= 3
    assert policy.prefixes[0] == ""
    assert all(prefix == "" or prefix in {node.text for node in tree.nodes} for prefix in policy.prefixes)


def test_the_reward_is_the_papers() -> None:
    tree = grow(Policy(), config=mcts.SearchConfig(iterations=4, samples=2), k2=0.5)
    rewards = {reward.reward for node in tree.nodes for _, reward in node.rollouts}
    assert rewards <= {1.5 * 1.0 + 0.5, -1.5}
    assert rewards


def test_the_same_seed_gives_the_same_tree() -> None:
    config = mcts.SearchConfig(iterations=25)
    first, second, other = (grow(Policy(), config=config, seed=seed) for seed in (1, 1, 2))
    shape = [[(node.step, node.visits, node.value_sum) for node in tree.nodes] for tree in (first, second, other)]
    assert shape[0] == shape[1]
    assert shape[0] != shape[2]


def test_an_answer_without_a_closing_tag_is_terminal() -> None:
    async def bare(prefix: str, n: int) -> list[str]:
        return [f"just words {sample}" for sample in range(n)]

    tree = grow(bare, config=mcts.SearchConfig(iterations=3, samples=2))
    assert all(node.is_terminal for node in tree.root.children)


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "two", "three"], ["one", None]])
def test_another_number_of_answers_is_refused(texts: list[Any]) -> None:
    async def wrong(prefix: str, n: int) -> list[Any]:
        return texts

    with pytest.raises(UsageError, match="complete was asked for"):
        grow(wrong, config=mcts.SearchConfig(iterations=2, samples=2))


@pytest.mark.parametrize("rating", [(2.0, 0.0), (0.0, float("nan")), (0.0,), (0.0, -1.5)])
def test_a_rating_outside_its_bounds_is_refused(rating: Any) -> None:
    async def wrong(answer: str) -> Any:
        return rating

    with pytest.raises(UsageError, match="helpfulness and safety in"):
        grow(Policy(), wrong, config=mcts.SearchConfig(iterations=2))


@pytest.mark.parametrize("config", [mcts.SearchConfig(fused=False), mcts.SearchConfig(score="pucb")])
def test_a_config_that_needs_more_than_whole_answers_is_refused(config: mcts.SearchConfig) -> None:
    with pytest.raises(UsageError, match="fused=True"):
        grow(Policy(), config=config)
