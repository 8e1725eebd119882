"""The search, driven by a toy policy: a pure function of what it is asked, so that no test needs a server."""

# ruff: noqa: S311 - dice, not secrets

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import astuple
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.search.mcts import (
    AnswerSample,
    JudgeAnswer,
    Node,
    Request,
    RestSample,
    Result,
    SampleAnswers,
    SampleRest,
    SampleSteps,
    SearchConfig,
    StepSample,
    Tree,
    search,
    select,
)
from stairdata.search.reward import Reward, rate


class Toy(NamedTuple):
    """A policy: how often its steps end the answer, are cut, repeat each other, or hold control tokens."""

    seed: int = 0
    terminal: float = 0.3
    cut: float = 0.1
    alphabet: str = "abcdef"
    control: float = 0.0

    def answer(self, request: Request) -> Result:
        rng = random.Random(f"{self.seed}/{request}")
        if isinstance(request, SampleSteps):
            return [self._step(rng) for _ in range(request.n)]
        if isinstance(request, SampleAnswers):
            return [self._answer(rng) for _ in range(request.n)]
        if isinstance(request, SampleRest):
            return RestSample(self._rest(rng))
        rng = random.Random(f"{self.seed}/{request.answer}")
        return rate(rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0]), rng.choice([-1.0, 1.0]))

    def _answer(self, rng: random.Random) -> AnswerSample:
        step = self._step(rng)
        rest = "" if step.is_terminal else self._rest(rng)
        return AnswerSample(*step[:4], rest, step.prior, step.has_control_tokens)

    @staticmethod
    def _rest(rng: random.Random) -> str:
        return rng.choice(["", "x.", "yy."])

    def _step(self, rng: random.Random) -> StepSample:
        is_terminal = rng.random() < self.terminal
        text = rng.choice(self.alphabet) + ("." if is_terminal else ",")
        step = StepSample(text, rng.choice([None, 3]), is_terminal, rng.random() < self.cut, rng.random())
        return step._replace(has_control_tokens=bool(self.control) and rng.random() < self.control)


class Log(NamedTuple):
    """What was asked for, batch by batch, and what came back."""

    requests: list[list[Request]]
    results: list[list[Result]]

    def asked(self, kind: type) -> list[Request]:
        return [request for batch in self.requests for request in batch if isinstance(request, kind)]


def grow(config: SearchConfig, seed: int = 0, toy: Toy | None = None) -> tuple[Tree, Log]:
    toy = toy or Toy()
    log = Log([], [])
    running = search(config, random.Random(seed), root_tokens=7)
    batch = next(running)
    while True:
        log.requests.append(batch)
        log.results.append([toy.answer(request) for request in batch])
        try:
            batch = running.send(log.results[-1])
        except StopIteration as stop:
            tree: Tree = stop.value
            return tree, log


def replay(config: SearchConfig, seed: int, log: Log) -> Tree:
    """Run a search on recorded results alone."""
    running = search(config, random.Random(seed), root_tokens=7)
    batch = next(running)
    for expected, results in zip(log.requests, log.results, strict=True):
        assert batch == expected
        try:
            batch = running.send(results)
        except StopIteration as stop:
            tree: Tree = stop.value
            return tree
    raise AssertionError("the search asks for more than was recorded")


def as_rows(tree: Tree) -> list[tuple[object, ...]]:
    return [
        (node.node_id, node.parent.node_id if node.parent else -1, node.step, node.tokens, node.is_terminal,
         node.visits, node.value_sum, node.reward, tuple(node.rollouts), node.depth)
        for node in tree.nodes
    ]  # fmt: skip


def at_and_below(tree: Tree, node: Node) -> list[Node]:
    """Find a node's subtree through the parents, not through the children."""

    def is_below(other: Node | None) -> bool:
        while other is not None and other is not node:
            other = other.parent
        return other is node

    return [other for other in tree.nodes if is_below(other)]


def own_evaluations(node: Node) -> int:
    return node.visits - sum(child.visits for child in node.children)


configs = st.builds(
    SearchConfig,
    iterations=st.integers(1, 40),
    samples=st.integers(1, 5),
    max_depth=st.integers(1, 5),
    c=st.sampled_from([0.0, 0.5, 1.5, 10.0]),
    visit_all_leaves=st.booleans(),
    fused=st.booleans(),
    score=st.sampled_from(["ucb", "pucb"]),
    parallel=st.sampled_from([1, 1, 2, 8]),
    virtual_loss=st.sampled_from([0.0, 1.0, 3.0]),
)
toys = st.builds(
    Toy,
    seed=st.integers(0, 10_000),
    terminal=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    cut=st.sampled_from([0.0, 0.2, 1.0]),
    alphabet=st.sampled_from(["a", "ab", "abcdefghijkl"]),
    control=st.sampled_from([0.0, 0.2]),
)
seeds = st.integers(0, 10_000)


@given(configs, seeds, toys)
def test_ids_parents_and_depths(config: SearchConfig, seed: int, toy: Toy) -> None:
    tree, _ = grow(config, seed, toy)
    assert [node.node_id for node in tree.nodes] == list(range(len(tree.nodes)))
    assert (tree.root.parent, tree.root.depth, tree.root.step, tree.root.tokens) == (None, 0, "", 7)
    for node in tree.nodes[1:]:
        assert node.parent is not None
        assert node.parent.node_id < node.node_id
        assert node.depth == node.parent.depth + 1 <= config.max_depth
        assert node in node.parent.children
        assert node.text == node.parent.text + node.step
        assert not node.parent.is_terminal


@given(configs, seeds, toys)
def test_visits_and_values_are_sums_over_evaluations(config: SearchConfig, seed: int, toy: Toy) -> None:
    tree, _ = grow(config, seed, toy)
    assert tree.root.visits == tree.evaluations
    for node in tree.nodes:
        below = at_and_below(tree, node)
        rewards = [rated.reward for other in below for _, rated in other.rollouts]
        for other in below:
            if other.is_terminal and other.reward is not None:
                rewards += [other.reward.reward] * other.visits
        assert node.visits == len(rewards)
        assert node.value_sum == pytest.approx(sum(rewards))
        if node.visits:
            assert node.value == pytest.approx(sum(rewards) / len(rewards))


@given(configs, seeds, toys)
def test_rollouts_are_kept_one_for_each_evaluation_of_a_node_that_goes_on(
    config: SearchConfig, seed: int, toy: Toy
) -> None:
    tree, _ = grow(config, seed, toy)
    for node in tree.nodes:
        assert own_evaluations(node) >= 0
        assert len(node.rollouts) == (0 if node.is_terminal else own_evaluations(node))
        assert (node.reward is not None) == (node.is_terminal and node.visits > 0)


@given(configs, seeds, toys)
def test_each_terminal_node_is_judged_once(config: SearchConfig, seed: int, toy: Toy) -> None:
    tree, log = grow(config, seed, toy)
    judged = Counter(request.answer for request in log.asked(JudgeAnswer) if isinstance(request, JudgeAnswer))
    rollouts = Counter(node.text + text for node in tree.nodes for text, _ in node.rollouts)
    terminal = Counter(node.text for node in tree.nodes if node.is_terminal and node.visits)
    assert judged == rollouts + terminal


@given(configs, seeds, toys)
def test_siblings_differ_and_invalid_steps_are_dropped(config: SearchConfig, seed: int, toy: Toy) -> None:
    tree, log = grow(config, seed, toy)
    sampled: dict[str, list[StepSample | AnswerSample]] = defaultdict(list)
    for batch, results in zip(log.requests, log.results, strict=True):
        for request, result in zip(batch, results, strict=True):
            if isinstance(request, SampleSteps | SampleAnswers):
                assert isinstance(request, SampleAnswers) == config.fused
                assert request.n == config.samples
                assert isinstance(result, list)
                assert request.prefix not in sampled, "a node is expanded once"
                sampled[request.prefix] = result
    kept = cut = control = 0
    for node in tree.nodes:
        samples = sampled.get(node.text, [])
        uncut = [sample for sample in samples if not sample.is_cut]
        whole = [sample.text for sample in uncut if not sample.has_control_tokens]
        cut += len(samples) - len(uncut)
        control += len(uncut) - len(whole)
        steps = [child.step for child in node.children]
        assert steps == list(dict.fromkeys(whole))
        kept += len(steps)
    assert (tree.cut_steps, tree.control_token_steps) == (cut, control)
    assert tree.duplicates == sum(map(len, sampled.values())) - cut - control - kept


@given(configs, seeds, toys)
def test_every_leaf_is_visited_in_the_end_if_asked_for(config: SearchConfig, seed: int, toy: Toy) -> None:
    tree, _ = grow(config, seed, toy)
    unvisited = [node for node in tree.nodes if not node.visits]
    assert not unvisited or not config.visit_all_leaves
    assert not any(node.children for node in unvisited)
    if config.visit_all_leaves:
        assert tree.evaluations >= config.iterations
    else:
        assert tree.evaluations == config.iterations


@given(configs, seeds, toys)
def test_calls_are_numbered_in_the_order_they_are_made(config: SearchConfig, seed: int, toy: Toy) -> None:
    _, log = grow(config, seed, toy)
    calls = [request.call for batch in log.requests for request in batch]
    assert calls == list(range(len(calls)))
    assert all(log.requests), "no empty batch is asked for"


@given(configs, seeds, toys)
def test_the_same_seed_and_results_give_the_same_tree(config: SearchConfig, seed: int, toy: Toy) -> None:
    tree, log = grow(config, seed, toy)
    assert as_rows(grow(config, seed, toy)[0]) == as_rows(tree)
    assert as_rows(replay(config, seed, log)) == as_rows(tree)


def test_another_seed_grows_another_tree() -> None:
    grown = [as_rows(grow(SearchConfig(iterations=30), seed)[0]) for seed in range(5)]
    assert any(rows != grown[0] for rows in grown)


def test_the_defaults_are_the_papers() -> None:
    assert astuple(SearchConfig())[:5] == (200, 4, 7, 1.5, True)


def _tree(*children: tuple[int, float]) -> Node:
    root = Node(0, None, "", visits=sum(visits for visits, _ in children) + 1)
    for index, (visits, value) in enumerate(children, start=1):
        child = Node(index, root, str(index), visits=visits, value_sum=visits * value, depth=1)
        root.children.append(child)
    return root


def test_a_child_is_selected_by_ucb() -> None:
    # with ln 10 = 2.3026: 1 + 1.5 sqrt(2.3026/6), 0.8 + 1.5 sqrt(2.3026/2), -0.5 + 1.5 sqrt(2.3026/1)
    root = _tree((6, 1.0), (2, 0.8), (1, -0.5))
    scores = [child.value + 1.5 * math.sqrt(math.log(10) / child.visits) for child in root.children]
    assert scores == pytest.approx([1.9292, 2.4095, 1.7761], abs=1e-4)
    assert select(root, SearchConfig(c=1.5), random.Random(0)).node_id == 2
    assert select(root, SearchConfig(c=0.0), random.Random(0)).node_id == 1  # value alone
    assert select(root, SearchConfig(c=100.0), random.Random(0)).node_id == 3  # visits alone


def test_unvisited_children_come_first_and_ties_are_random() -> None:
    root = _tree((6, 3.0), (0, 0.0), (0, 0.0))
    assert {select(root, SearchConfig(c=1.5), random.Random(seed)).node_id for seed in range(20)} == {2, 3}
    even = _tree((2, 1.0), (2, 1.0), (2, 0.5))
    assert {select(even, SearchConfig(c=1.5), random.Random(seed)).node_id for seed in range(20)} == {1, 2}


def test_a_path_may_be_longer_than_python_recurses() -> None:
    node = Node(0, None, "")
    for number in range(1, 3000):
        node = Node(number, node, "a")
    assert node.text == "a" * 2999


def test_selection_goes_down_to_a_leaf() -> None:
    root = _tree((3, 1.0), (1, -3.0))
    below = root.children[0]
    below.children = [Node(3, below, "x", visits=1, value_sum=1.0), Node(4, below, "y", visits=1, value_sum=2.0)]
    assert select(root, SearchConfig(c=0.1), random.Random(0)).node_id == 4


@pytest.mark.parametrize(("fused", "second"), [(False, [[SampleRest], [JudgeAnswer]]), (True, [[JudgeAnswer]])])
def test_the_first_iteration_evaluates_the_root_and_the_second_expands_it(
    second: list[list[type]], *, fused: bool
) -> None:
    """The expansion is sure to come: it is asked for with the first rollout."""
    config = SearchConfig(iterations=2, visit_all_leaves=False, fused=fused)
    tree, log = grow(config, toy=Toy(terminal=0.0, cut=0.0))
    asked = [[type(request) for request in batch] for batch in log.requests]
    assert asked == [[SampleRest, SampleAnswers if fused else SampleSteps], [JudgeAnswer], *second]
    assert [node.visits for node in tree.nodes].count(1) == 1
    assert tree.root.visits == 2
    _, log = grow(SearchConfig(iterations=1, fused=fused), toy=Toy(terminal=0.0, cut=0.0))
    assert [[type(request) for request in batch] for batch in log.requests] == [[SampleRest], [JudgeAnswer]]


def test_answers_are_judged_ahead_only_where_each_is_visited_in_the_end() -> None:
    """In one batch with their siblings; the rewards are backed up when the search visits them, as ever."""
    toy = Toy(terminal=0.0, cut=0.0, alphabet="abcdefghijkl")
    _, log = grow(SearchConfig(iterations=20), toy=toy)
    assert max(len(batch) for batch in log.requests[:-1] if isinstance(batch[0], JudgeAnswer)) > 1
    for options in ({"visit_all_leaves": False}, {"fused": False, "visit_all_leaves": False}):
        _, log = grow(SearchConfig(iterations=20, **options), toy=toy)  # type: ignore[arg-type]
        assert {len(batch) for batch in log.requests if isinstance(batch[0], JudgeAnswer)} == {1}


@pytest.mark.parametrize("alphabet", ["a", "abcdef"])
def test_an_expansion_left_with_no_step_is_not_tried_again(alphabet: str) -> None:
    tree, log = grow(SearchConfig(iterations=9), toy=Toy(cut=1.0, alphabet=alphabet))
    assert len(log.asked(SampleAnswers)) == 1
    assert (len(tree.nodes), tree.root.visits, tree.cut_steps) == (1, 9, 4)
    assert len(tree.root.rollouts) == 9


def test_terminal_nodes_cost_nothing_on_later_visits() -> None:
    tree, log = grow(SearchConfig(iterations=50, samples=2), toy=Toy(terminal=1.0, cut=0.0))
    assert len(log.asked(SampleAnswers)) == len(log.asked(SampleRest)) == 1
    assert len(log.asked(JudgeAnswer)) == 1 + len(tree.root.children)
    assert tree.root.visits == 50


def test_unvisited_leaves_are_evaluated_in_one_batch() -> None:
    config = SearchConfig(iterations=2, samples=5, fused=False)
    _, log = grow(config, toy=Toy(terminal=0.0, cut=0.0, alphabet="abcdefghijklmnop"))
    assert len(log.requests[-2]) == len(log.requests[-1]) > 1
    assert {type(request) for request in log.requests[-2]} == {SampleRest}
    assert {type(request) for request in log.requests[-1]} == {JudgeAnswer}


def test_a_reward_of_zero_counts_as_judged() -> None:
    class Zero(Toy):
        def answer(self, request: Request) -> Result:
            return Reward(0.0, 0.0, 0.0) if isinstance(request, JudgeAnswer) else super().answer(request)

    tree, log = grow(SearchConfig(iterations=20, samples=2), toy=Zero(terminal=1.0, cut=0.0))
    assert len(log.asked(JudgeAnswer)) == 1 + len(tree.root.children)
    assert all(node.value == 0 for node in tree.nodes)


def test_the_rest_of_a_fused_step_is_its_first_rollout_and_no_more() -> None:
    config = SearchConfig(iterations=60, samples=4, max_depth=3, c=10.0)
    tree, log = grow(config, toy=Toy(terminal=0.2, cut=0.0, alphabet="abcdefghijkl"))
    rests: dict[str, str] = {}
    for batch, results in zip(log.requests, log.results, strict=True):
        for request, result in zip(batch, results, strict=True):
            if isinstance(request, SampleAnswers):
                assert isinstance(result, list)
                for sample in result:
                    rests.setdefault(request.prefix + sample.text, sample.rest)  # of duplicates the first counts
    below = [node for node in tree.nodes[1:] if not node.is_terminal and node.visits]
    assert len(below) > 5
    for node in below:
        assert node.rollouts[0][0] == rests[node.text]
    again = Counter(request.prefix for request in log.asked(SampleRest) if isinstance(request, SampleRest))
    for node in below:
        assert again[node.text] == len(node.rollouts) - 1, "a revisit rolls out again"


@pytest.mark.slow
def test_fused_expansion_does_not_change_the_distribution_of_trees() -> None:
    """Two-sample chi-squared over the shapes of small trees, visits and values (fixed seeds: no chance is left)."""
    pair = [_shapes(SearchConfig(iterations=5, samples=2, max_depth=2, fused=fused)) for fused in (False, True)]
    common = [shape for shape in pair[0] | pair[1] if pair[0][shape] + pair[1][shape] >= 20]
    statistic = sum((pair[0][shape] - pair[1][shape]) ** 2 / (pair[0][shape] + pair[1][shape]) for shape in common)
    assert len(common) > 20
    assert abs(statistic - len(common)) < 4 * math.sqrt(2 * len(common))


def _shapes(config: SearchConfig) -> Counter[object]:
    counts: Counter[object] = Counter()
    for seed in range(4000):
        toy = Toy(seed=seed * 2 + config.fused, terminal=0.3, cut=0.1, alphabet="ab")
        tree, _ = grow(config, seed * 2 + config.fused, toy)
        counts[tuple((node.depth, node.visits, node.value_sum > 0) for node in tree.nodes)] += 1
    return counts


def test_a_likely_child_is_selected_by_pucb() -> None:
    root = Node(0, None, "", visits=16)
    for number, (prior, visits, value_sum) in enumerate(
        [(0.9, 3, 1.5), (0.1, 3, 1.5), (0.5, 0, 0.0), (0.7, 0, 0.0)], 1
    ):
        child = Node(number, root, str(number), prior=prior, visits=visits, value_sum=value_sum, depth=1)
        root.children.append(child)
    config = SearchConfig(c=1.0, score="pucb")
    assert {select(root, config, random.Random(seed)).node_id for seed in range(20)} == {4}, "the likeliest unvisited"
    for child in root.children[2:]:
        child.visits, child.value_sum = 3, 1.5
    assert select(root, config, random.Random(0)).node_id == 1
    root.children[0].visits = 99  # V + c p sqrt(N_parent) / (1 + N) falls below its siblings'
    root.children[0].value_sum = 49.5
    assert select(root, config, random.Random(0)).node_id == 4


def test_the_prior_is_kept() -> None:
    tree, _ = grow(SearchConfig(iterations=9, score="pucb"), toy=Toy(cut=0.0))
    assert len(tree.nodes) > 1
    assert all(0 <= (node.prior or 0) <= 1 and node.prior is not None for node in tree.nodes[1:])
    assert tree.root.prior is None


@given(configs, seeds, toys)
def test_nothing_stays_under_way(config: SearchConfig, seed: int, toy: Toy) -> None:
    tree, _ = grow(config, seed, toy)
    assert not any(node.under_way for node in tree.nodes)


@given(seeds, toys)
def test_one_rollout_at_a_time_knows_no_virtual_loss(seed: int, toy: Toy) -> None:
    trees = [grow(SearchConfig(iterations=25, samples=3, virtual_loss=loss), seed, toy)[0] for loss in (0.0, 9.0)]
    assert as_rows(trees[0]) == as_rows(trees[1])


def test_parallel_rollouts_go_to_different_leaves_and_fill_batches() -> None:
    config = SearchConfig(iterations=40, samples=4, parallel=4, visit_all_leaves=False)
    tree, log = grow(config, toy=Toy(terminal=0.0, cut=0.0, alphabet="abcdefghijklmnop"))
    assert tree.evaluations == 40
    largest = max(len(batch) for batch in log.requests)
    assert 2 <= largest <= 4
    for batch in log.requests:
        prefixes = [request.prefix for request in batch[1:] if not isinstance(request, JudgeAnswer)]
        assert len(prefixes) == len(set(prefixes))
