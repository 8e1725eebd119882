"""Safety-Informed Monte Carlo tree search (paper section 3.2, Algorithm 1), free of I/O.

`search` is a generator: it yields batches of requests (`SampleSteps` or `SampleAnswers`, `SampleRest`, `Judge`)
and is sent their results in the same order. Whoever drives it fetches them in any way, so its tests need no server,
and a search can be replayed from recorded results: it depends on nothing but its seed and what it is sent.

Deviations from the published code: a step that was cut at the token limit, or that holds a control token, is dropped
like a duplicate, not kept; with `parallel` above 1 several rollouts are under way at a time, kept apart by a virtual
loss. A rollout is judged as it stands, whatever it holds: nothing is trained on it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from stairdata.search.reward import Reward


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """What a search needs to know (defaults: the paper's)."""

    iterations: int = 200
    samples: int = 4
    max_depth: int = 7
    c: float = 1.5
    visit_all_leaves: bool = True
    fused: bool = True
    score: Literal["ucb", "pucb"] = "ucb"
    parallel: int = 1
    virtual_loss: float = 1.0

    @property
    def judges_ahead(self) -> bool:
        """Whether the answers of an expansion are judged at once: where each is sure to be visited in the end."""
        return self.fused and self.visit_all_leaves


class SampleSteps(NamedTuple):
    """Ask for n next steps after a prefix; the result is a sequence of `StepSample`."""

    call: int
    prefix: str
    n: int


class SampleAnswers(NamedTuple):
    """Ask for n whole answers after a prefix; the result is a sequence of `AnswerSample`."""

    call: int
    prefix: str
    n: int


class SampleRest(NamedTuple):
    """Ask for the rest of an answer after a prefix; the result is a `RestSample`."""

    call: int
    prefix: str


class JudgeAnswer(NamedTuple):
    """Ask for the reward of a whole answer; the result is a `Reward`."""

    call: int
    answer: str


class StepSample(NamedTuple):
    """One sampled step, without end-of-turn text."""

    text: str
    tokens: int | None
    is_terminal: bool
    is_cut: bool
    prior: float | None = None
    """PUCB's p: the mean probability of its tokens."""
    has_control_tokens: bool = False
    """It holds control tokens other than the grammar's tags: trained on, it would forge turns."""


class AnswerSample(NamedTuple):
    """A sampled answer, cut behind its first step."""

    text: str
    tokens: int | None
    is_terminal: bool
    is_cut: bool
    rest: str
    prior: float | None = None
    has_control_tokens: bool = False
    """The step alone; the rest is a rollout."""


class RestSample(NamedTuple):
    """A rollout: the text after the node, without end-of-turn text."""

    text: str


Request = SampleSteps | SampleAnswers | SampleRest | JudgeAnswer
Result = Sequence[StepSample | AnswerSample] | RestSample | Reward
Search = Generator[list[Request], list[Result], "Tree"]


@dataclass(slots=True)
class Node:
    """A node of the tree; `value` is the mean reward of the evaluations at it and below it."""

    node_id: int
    parent: Node | None
    step: str
    tokens: int | None = None
    is_terminal: bool = False
    prior: float | None = None
    visits: int = 0
    value_sum: float = 0.0
    under_way: int = 0
    """Rollouts at it and below it that were chosen and are not backed up yet."""
    reward: Reward | None = None
    rollouts: list[tuple[str, Reward]] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    is_exhausted: bool = False
    waiting_rest: str | None = None
    """Of a fused expansion: the rest of the answer this step came from, until the node's first visit."""
    waiting_reward: Reward | None = None
    """What was judged ahead of that visit."""
    depth: int = 0

    @property
    def value(self) -> float:
        return self.value_sum / self.visits

    @property
    def text(self) -> str:
        """The assistant's text from its start up to and including this step."""
        steps: list[str] = []
        node: Node | None = self
        while node is not None:  # a path may be longer than Python recurses
            steps.append(node.step)
            node = node.parent
        return "".join(reversed(steps))


@dataclass(slots=True)
class Tree:
    """A finished search."""

    nodes: list[Node]
    evaluations: int = 0
    duplicates: int = 0
    cut_steps: int = 0
    control_token_steps: int = 0

    @property
    def root(self) -> Node:
        return self.nodes[0]


class _Calls:
    """Numbers requests in the order they are made, which is the same whatever the order they are answered in."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        self._next += 1
        return self._next - 1


def search(config: SearchConfig, rng: random.Random, root_tokens: int | None = None) -> Search:
    """Grow a tree.

    Args:
        config: iterations and shape.
        rng: breaks ties between unvisited children and between equal scores.
        root_tokens: length of the rendered prompt, kept as the root's tokens.

    Yields:
        Batches of requests; to be sent the list of their results.

    Returns:
        The tree.
    """
    tree = Tree([Node(0, None, "", tokens=root_tokens)])
    calls = _Calls()
    yield from _begin(tree, config, calls)
    left = config.iterations - 1
    while left:
        leaves = _choose(tree.root, config, rng, min(config.parallel, left))
        growing = [leaf for leaf in leaves if leaf.visits and _can_expand(leaf, config)]
        if growing:
            yield from _expand(tree, growing, config, calls)
        leaves = [_pick(leaf, config, rng) if leaf.children else leaf for leaf in leaves]
        yield from _evaluate(tree, leaves, calls)
        left -= len(leaves)
    if config.visit_all_leaves:
        unvisited = [node for node in tree.nodes if not node.children and not node.visits]
        yield from _evaluate(tree, unvisited, calls)
    return tree


def _begin(tree: Tree, config: SearchConfig, calls: _Calls) -> Generator[list[Request], list[Result], None]:
    """Make the first iteration, which evaluates the root.

    The second one expands it whatever comes of the first, so both ask at the same time.
    """
    root = tree.root
    if config.iterations == 1:
        yield from _evaluate(tree, [root], calls)
        return
    ask = SampleAnswers if config.fused else SampleSteps
    rest, samples = yield [SampleRest(calls.take(), ""), ask(calls.take(), "", config.samples)]
    assert isinstance(rest, RestSample)
    assert not isinstance(samples, RestSample | Reward)
    root.waiting_rest = rest.text
    children = _add_children(tree, root, samples)
    yield from _judge_ahead([root, *(children if config.judges_ahead else [])], calls)
    yield from _evaluate(tree, [root], calls)


def _choose(root: Node, config: SearchConfig, rng: random.Random, most: int) -> list[Node]:
    """Select leaves for one batch, each as if those before it had come back with a loss.

    A leaf that comes up again ends the batch: what it needs is under way already.
    """
    leaves: list[Node] = []
    while len(leaves) < most:
        leaf = select(root, config, rng)
        if any(leaf is other for other in leaves):
            break
        leaves.append(leaf)
        _mark(leaf, 1)
    for leaf in leaves:
        _mark(leaf, -1)
    return leaves


def _mark(leaf: Node, rollouts: int) -> None:
    node: Node | None = leaf
    while node is not None:
        node.under_way += rollouts
        node = node.parent


def select(root: Node, config: SearchConfig, rng: random.Random) -> Node:
    """Go down to a leaf."""
    node = root
    while node.children:
        node = _pick(node, config, rng)
    return node


def _pick(node: Node, config: SearchConfig, rng: random.Random) -> Node:
    """Choose a child: unvisited ones first, under PUCB the likeliest of them, else by score; ties at random."""
    candidates = [child for child in node.children if not child.visits + child.under_way]
    if candidates and config.score == "ucb":
        return rng.choice(candidates)
    if candidates:
        scores = [child.prior or 0.0 for child in candidates]
    else:
        candidates = node.children
        visits = node.visits + node.under_way
        scores = [_score(child, visits, config) for child in candidates]
    best = max(scores)
    return rng.choice([child for child, score in zip(candidates, scores, strict=True) if score == best])


def _score(node: Node, parent_visits: int, config: SearchConfig) -> float:
    """UCB: V + c sqrt(ln N_parent / N). PUCB: V + c p sqrt(N_parent) / (1 + N)."""
    visits = node.visits + node.under_way
    value = (node.value_sum - config.virtual_loss * node.under_way) / visits
    if config.score == "ucb":
        return value + config.c * math.sqrt(math.log(parent_visits) / visits)
    return value + config.c * (node.prior or 0.0) * math.sqrt(parent_visits) / (1 + visits)


def _can_expand(leaf: Node, config: SearchConfig) -> bool:
    return not (leaf.is_terminal or leaf.is_exhausted or leaf.depth >= config.max_depth)


def _expand(
    tree: Tree, leaves: list[Node], config: SearchConfig, calls: _Calls
) -> Generator[list[Request], list[Result], None]:
    ask = SampleAnswers if config.fused else SampleSteps
    sampled = yield [ask(calls.take(), leaf.text, config.samples) for leaf in leaves]
    children: list[Node] = []
    for leaf, samples in zip(leaves, sampled, strict=True):
        assert not isinstance(samples, RestSample | Reward)
        children += _add_children(tree, leaf, samples)
    if config.judges_ahead and children:
        yield from _judge_ahead(children, calls)


def _judge_ahead(nodes: list[Node], calls: _Calls) -> Generator[list[Request], list[Result], None]:
    """Judge answers before the visits that back them up; what is judged doesn't depend on when."""
    judged = yield [JudgeAnswer(calls.take(), node.text + (node.waiting_rest or "")) for node in nodes]
    for node, reward in zip(nodes, judged, strict=True):
        assert isinstance(reward, Reward)
        node.waiting_reward = reward


def _add_children(tree: Tree, leaf: Node, samples: Sequence[StepSample | AnswerSample]) -> list[Node]:
    seen: set[str] = set()
    for sample in samples:
        if sample.is_cut:
            tree.cut_steps += 1
        elif sample.has_control_tokens:
            tree.control_token_steps += 1
        elif sample.text in seen:
            tree.duplicates += 1
        else:
            seen.add(sample.text)
            child = Node(len(tree.nodes), leaf, sample.text, sample.tokens, sample.is_terminal, sample.prior)
            child.depth = leaf.depth + 1
            if isinstance(sample, AnswerSample) and not sample.is_terminal:
                child.waiting_rest = sample.rest
            leaf.children.append(child)
            tree.nodes.append(child)
    leaf.is_exhausted = not leaf.children
    return leaf.children


def _evaluate(tree: Tree, leaves: list[Node], calls: _Calls) -> Generator[list[Request], list[Result], None]:
    """Evaluate leaves, all their rollouts in one batch, then all their judgements in one batch, and back up."""
    rests = {leaf.node_id: leaf.waiting_rest for leaf in leaves if leaf.waiting_rest is not None}
    unfinished = [leaf for leaf in leaves if not leaf.is_terminal and leaf.waiting_rest is None]
    if unfinished:
        sampled = yield [SampleRest(calls.take(), leaf.text) for leaf in unfinished]
        for leaf, rest in zip(unfinished, sampled, strict=True):
            assert isinstance(rest, RestSample)
            rests[leaf.node_id] = rest.text
    rewards = {leaf.node_id: leaf.waiting_reward for leaf in leaves if leaf.waiting_reward is not None}
    unjudged = [leaf for leaf in leaves if leaf.reward is None and leaf.node_id not in rewards]
    if unjudged:
        judged = yield [JudgeAnswer(calls.take(), leaf.text + rests.get(leaf.node_id, "")) for leaf in unjudged]
        for leaf, reward in zip(unjudged, judged, strict=True):
            assert isinstance(reward, Reward)
            rewards[leaf.node_id] = reward
    for leaf in leaves:
        _keep(leaf, rests.get(leaf.node_id), rewards.get(leaf.node_id))
        _back_up(tree, leaf, rewards.get(leaf.node_id) or leaf.reward)


def _keep(leaf: Node, rest: str | None, reward: Reward | None) -> None:
    leaf.waiting_rest = leaf.waiting_reward = None
    if reward is None:
        return  # a terminal node judged on an earlier visit
    if rest is None:
        leaf.reward = reward
    else:
        leaf.rollouts.append((rest, reward))


def _back_up(tree: Tree, leaf: Node, reward: Reward | None) -> None:
    assert reward is not None
    tree.evaluations += 1
    node: Node | None = leaf
    while node is not None:
        node.visits += 1
        node.value_sum += reward.reward
        node = node.parent
