"""Pairs against an oracle: the rules of design section 6 in plain loops, on trees that hypothesis grows."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.pairs.build import AnyPairsSection, build_preference_pairs, build_prm_pairs, pairs_of
from stairdata.generators.pairs.forest import path_texts, unfold
from stairdata.generators.pairs.length_limit import TEMPLATE_BYTES, LengthLimit
from stairdata.recipe import PreferencePairsSection, PrmPairsSection, Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.artifacts import validate_artifact
from stairdata_schemas.errors import ArtifactNotFoundError, BuildError, UsageError
from stairdata_schemas.kinds import polars_schema, row_schema
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.text.visible import is_blank
from tests.stairdata.forests import Node, artifact_of, back_up, frame_of, new_node, tree_of

TEXTS = ["a", "bb", "é", "e\u0301", "👩🏽‍🚀", "\U0001f1e9\U0001f1ea", "\n\n.", "東京", "z\u0335\u0301"]
REWARDS = [-3.0, -1.5, -1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]  # their sums are exact in binary


@st.composite
def trees(draw: st.DrawFn, number: int = 0) -> dict[str, Any]:
    """A tree of the schema with visits and values that a search could have left."""
    nodes: list[Node] = [new_node(0, -1, 0, "", draw(st.none() | st.integers(0, 60)))]
    for node_id in range(1, draw(st.integers(1, 14))):
        parent = nodes[draw(st.sampled_from([node["node_id"] for node in nodes if not node["is_terminal"]]))]
        siblings = {node["step"] for node in nodes if node["parent_id"] == parent["node_id"]}
        step = draw(st.sampled_from([*TEXTS, ""])) + ("" if draw(st.booleans()) else str(node_id))
        step = f"{step}.{node_id}" if step in siblings else step
        tokens = draw(st.none() | st.integers(0, 40))
        node = new_node(node_id, parent["node_id"], parent["depth"] + 1, step, tokens)
        node["is_terminal"] = draw(st.booleans())
        nodes.append(node)
    for node in nodes:
        evaluations = draw(st.integers(0, 7))
        reward = draw(st.sampled_from(REWARDS))
        if node["is_terminal"] and evaluations:
            node["reward"] = reward
        back_up(nodes, node["node_id"], evaluations, reward)
    prompt = f"prompt {number}"
    prompt_id = identity.prompt_id(prompt)
    return {"tree_id": identity.tree_id(prompt_id, 0), "prompt_id": prompt_id, "prompt": prompt, "task": "safety",
            "round": draw(st.none() | st.integers(0, 3)), "nodes": nodes}  # fmt: skip


THRESHOLDS: dict[str, Any] = {
    "min_margin": st.sampled_from([0.0, 0.5, 1.0]),
    "min_chosen_value": st.sampled_from([-5.0, 0.75, 0.8]),
    "min_visits": st.integers(1, 5),
    "min_margin_by_depth": st.sampled_from([{}, {1: 1.5}, {2: 0.0, 3: 2.0}]),
    "max_tokens": st.sampled_from([100, 200, 2048]),
}
STEPS = st.builds(PreferencePairsSection, **THRESHOLDS)
ANSWERS = st.builds(
    PreferencePairsSection,
    granularity=st.just("trajectory"),
    trajectory_rule=st.sampled_from(["thresholds", "margin"]),
    max_repeats=st.integers(1, 4),
    **THRESHOLDS,
)
PRM = st.builds(PrmPairsSection, whole_answers=st.booleans(), **THRESHOLDS)
EVERY_KIND = st.one_of(
    st.tuples(st.just("preference_pairs"), STEPS),
    st.tuples(st.just("preference_pairs"), ANSWERS),
    st.tuples(st.just("prm_pairs"), PRM),
)
SEED = 7
SECTIONS: dict[str, AnyPairsSection] = {"preference_pairs": PreferencePairsSection(), "prm_pairs": PrmPairsSection()}
forests = st.integers(1, 3).flatmap(lambda count: st.tuples(*[trees(number) for number in range(count)]))


class Oracle:
    """The rules, written down once more, slowly."""

    def __init__(self, tree: dict[str, Any], section: AnyPairsSection) -> None:
        self.tree = tree
        self.nodes = tree["nodes"]
        self.section = section

    def path(self, node: Node) -> list[Node]:
        nodes = [node]
        while nodes[0]["parent_id"] >= 0:
            nodes.insert(0, self.nodes[nodes[0]["parent_id"]])
        return nodes

    def text(self, node: Node) -> str:
        return "".join(step["step"] for step in self.path(node))

    def value(self, node: Node) -> float:
        """V is value_sum / visits; a terminal node's is its reward."""
        value: float = node["reward"] if node["is_terminal"] else node["value_sum"] / node["visits"]
        return value

    def tokens(self, node: Node) -> int:
        """Every byte is a token to the tokenizer of these tests; a chat template is all the prompt is wrapped in."""
        if node["tokens"] is not None:
            return int(node["tokens"])
        text = node["step"] if node["depth"] else self.tree["prompt"]
        return len(text.encode()) + (0 if node["depth"] else TEMPLATE_BYTES)

    def is_short(self, node: Node) -> bool:
        return sum(map(self.tokens, self.path(node))) + int(node["is_terminal"]) <= self.section.max_tokens

    def is_comparable(self, node: Node) -> bool:
        return bool(node["depth"] > 0 and node["visits"] > 0 and not is_blank(node["step"]) and self.is_short(node))

    def is_eligible(self, node: Node) -> bool:
        return self.is_comparable(node) and (node["is_terminal"] or node["visits"] >= self.section.min_visits)

    def margin(self, chosen: Node) -> float:
        return self.section.min_margin_by_depth.get(chosen["depth"], self.section.min_margin)

    def ordered(self, kind: str) -> Iterator[tuple[Node, Node, str]]:
        if isinstance(self.section, PreferencePairsSection) and self.by_thresholds(self.section):
            yield from self.zipped()
            return
        eligible = [node for node in self.nodes if self.is_eligible(node)]
        for chosen in eligible:
            for rejected in eligible:
                how = self.how(kind, chosen, rejected)
                if how == "trajectory" and isinstance(self.section, PrmPairsSection) and not self.section.whole_answers:
                    continue
                is_good = self.value(chosen) >= self.section.min_chosen_value
                if how and is_good and self.value(chosen) - self.value(rejected) > self.margin(chosen):
                    yield chosen, rejected, how

    @staticmethod
    def by_thresholds(section: PreferencePairsSection) -> bool:
        return (section.granularity, section.trajectory_rule) == ("trajectory", "thresholds")

    def zipped(self) -> Iterator[tuple[Node, Node, str]]:
        """Good and bad answers, the fewer repeated, zipped."""
        assert isinstance(self.section, PreferencePairsSection)
        good: list[Node] = []
        bad: list[Node] = []
        for node in self.nodes:
            if node["is_terminal"] and self.is_comparable(node):
                if self.value(node) >= self.section.min_chosen_value:
                    good.append(node)
                elif self.value(node) <= self.section.min_chosen_value - self.section.min_margin:
                    bad.append(node)
        if not good or not bad:
            return
        good.sort(key=self.key)
        bad.sort(key=self.key)
        if len(good) < len(bad):
            good *= min(len(bad) // len(good) + 1, self.section.max_repeats)
        else:
            bad *= min(len(good) // len(bad) + 1, self.section.max_repeats)
        yield from ((chosen, rejected, "trajectory") for chosen, rejected in zip(good, bad, strict=False))

    def key(self, node: Node) -> int:
        """The shuffle: SplitMix64 over seed, tree and node."""
        state = SEED
        for number in (int(self.tree["tree_id"], 16), node["node_id"]):
            state = _splitmix(state + number + 0x9E3779B97F4A7C15)
        return state

    def how(self, kind: str, chosen: Node, rejected: Node) -> str | None:
        if self.section.granularity == "trajectory":
            return "trajectory" if chosen["is_terminal"] and rejected["is_terminal"] else None
        if kind == "preference_pairs":
            return "step" if chosen["parent_id"] == rejected["parent_id"] else None
        if chosen["is_terminal"] and rejected["is_terminal"]:
            return "trajectory"
        return "step" if chosen["depth"] == rejected["depth"] else None

    def common(self, chosen: Node, rejected: Node) -> str:
        """The text of the deepest common ancestor."""
        others = [node["node_id"] for node in self.path(rejected)]
        shared = [node for node in self.path(chosen) if node["node_id"] in others]
        return self.text(shared[-1])

    def pairs(self, kind: str) -> list[dict[str, Any]]:
        return [self.pair(*found) for found in self.ordered(kind)]

    def pair(self, chosen: Node, rejected: Node, how: str) -> dict[str, Any]:
        value, other = self.value(chosen), self.value(rejected)
        return {
            "pair_id": identity.pair_id(self.tree["tree_id"], chosen["node_id"], rejected["node_id"], how),
            **{name: self.tree[name] for name in ("tree_id", "prompt_id", "prompt", "task", "round")},
            "chosen": self.text(chosen),
            "rejected": self.text(rejected),
            "prefix_length": len(self.common(chosen, rejected)),
            "depth": chosen["depth"],
            "chosen_value": value,
            "rejected_value": other,
            "margin": value - other,
            "chosen_visits": chosen["visits"],
            "rejected_visits": rejected["visits"],
            "chosen_is_terminal": chosen["is_terminal"],
            "rejected_is_terminal": rejected["is_terminal"],
            "chosen_node_id": chosen["node_id"],
            "rejected_node_id": rejected["node_id"],
            "granularity": how,
        }


def _splitmix(value: int) -> int:
    value %= 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


class ByteTokenizer:
    """A token a byte, and a template of 116 of them around a prompt."""

    chat_template = "x"
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __len__(self) -> int:
        return 256

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return str(messages[0]["content"]) + "x" * TEMPLATE_BYTES


def ruler(section: AnyPairsSection, monkeypatch: pytest.MonkeyPatch) -> LengthLimit:
    monkeypatch.setattr("stairdata.generators.pairs.length_limit.rendering.load_tokenizer", lambda _: ByteTokenizer())
    return LengthLimit(section.max_tokens, "bytes", "preference_pairs.tokenizer")


def rounded(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = ("chosen_value", "rejected_value", "margin")
    rows = [pair | {name: round(pair[name], 9) for name in values} for pair in pairs]
    return sorted(rows, key=lambda pair: str(pair["pair_id"]))


@given(forest=forests, kind_section=EVERY_KIND)
@settings(max_examples=200)
def test_pairs_are_those_of_the_rules(forest: Any, kind_section: tuple[str, AnyPairsSection]) -> None:
    kind, section = kind_section
    expected = [pair for tree in forest for pair in Oracle(tree, section).pairs(kind)]
    with pytest.MonkeyPatch.context() as patch:
        found = pairs_of(kind, frame_of(forest), section, Counter(), SEED, ruler(section, patch))
    assert rounded(found.to_dicts()) == rounded(expected)


@pytest.mark.slow
@given(forest=forests, kind_section=EVERY_KIND)
@settings(max_examples=60)
def test_pairs_are_sound_and_in_a_fixed_order(forest: Any, kind_section: tuple[str, AnyPairsSection]) -> None:
    kind, section = kind_section
    with pytest.MonkeyPatch.context() as patch:
        pairs = pairs_of(kind, frame_of(forest), section, Counter(), SEED, ruler(section, patch))
        assert pairs.equals(pairs_of(kind, frame_of(forest[::-1]), section, Counter(), SEED, ruler(section, patch)))
    assert pairs.schema == polars_schema(kind)
    assert pairs["pair_id"].n_unique() == len(pairs)
    same_text = (pairs["chosen"] == pairs["rejected"]).sum()  # equal texts of different paths go to quarantine
    blank = (pairs["margin"] <= 0).sum()  # good and bad may be equally good where min_margin is 0
    assert same_text or blank or section.min_margin == 0 or row_schema(kind).is_valid(pairs)
    for row in pairs.iter_rows(named=True):
        length = row["prefix_length"]
        assert row["chosen"][:length] == row["rejected"][:length]


@given(forest=forests, kind_section=EVERY_KIND)
@settings(max_examples=60)
def test_the_funnel_adds_up(forest: Any, kind_section: tuple[str, AnyPairsSection]) -> None:
    kind, section = kind_section
    funnel: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        pairs = pairs_of(kind, frame_of(forest), section, funnel, SEED, ruler(section, patch))
    assert all(count >= 0 for count in funnel.values())
    if section.granularity == "step":
        rules = ("value_too_low", "margin_too_small", "too_long", "over_cap_of_depth", "over_cap_of_tree")
        assert funnel["candidates"] - sum(funnel[f"removed_{rule}"] for rule in rules) == len(pairs)


@given(forest=forests)
@settings(max_examples=30)
def test_unfolding_keeps_every_node_and_its_path(forest: Any) -> None:
    unfolded = unfold(frame_of(forest))
    assert len(unfolded.nodes) == sum(len(tree["nodes"]) for tree in forest)
    texts = path_texts(unfolded, np.arange(len(unfolded.nodes))).to_list()
    expected = [Oracle(tree, PreferencePairsSection()).text(node) for tree in forest for node in tree["nodes"]]
    assert texts == expected


def test_the_value_of_a_terminal_node_is_its_reward() -> None:
    """Six visits of 0.8 sum to 4.799999...: the mean must not fall below the threshold of 0.8."""
    tree = tree_of([(1, 0, "good.", True, 0.8, 6), (2, 0, "bad.", True, -1.0, 1)])
    for kind in ("preference_pairs", "prm_pairs"):
        pairs = pairs_of(kind, frame_of([tree]), SECTIONS[kind], Counter())
        assert pairs["chosen_value"].to_list() == [0.8]


def test_text_without_a_visible_character_is_in_no_pair() -> None:
    """The schema refuses such a row; a tree of a weak model would fill the quarantine with them."""
    tree = tree_of([(1, 0, "good.", True, 3.0, 1), (2, 0, "\n\n", True, -3.0, 1)])
    for kind in ("preference_pairs", "prm_pairs"):
        assert row_schema(kind).is_valid(pairs_of(kind, frame_of([tree]), SECTIONS[kind], Counter()))


def test_by_hand() -> None:
    tree = tree_of(
        [
            (1, 0, "👩🏽‍🚀A", False, 2.0, 5),
            (2, 0, "B", False, 1.0, 4),
            (3, 0, "C", False, 0.0, 3),  # visited too rarely
            (4, 1, "\n\nD", True, 3.0, 1),
            (5, 2, "\n\ne\u0301", True, -1.0, 1),
            (6, 1, "", True, -3.0, 1),  # an answer that ended at once has no step to compare
        ]
    )
    steps = pairs_of("preference_pairs", frame_of([tree]), PreferencePairsSection(), Counter())
    assert steps.select("chosen", "rejected", "prefix_length", "granularity").rows() == [("👩🏽‍🚀A", "B", 0, "step")]
    rewards = pairs_of("prm_pairs", frame_of([tree]), PrmPairsSection(), Counter())
    assert rewards.select("chosen", "rejected", "prefix_length", "granularity", "margin").rows() == [
        ("👩🏽‍🚀A", "B", 0, "step", pytest.approx(_value(tree, 1) - _value(tree, 2))),
        ("👩🏽‍🚀A\n\nD", "B\n\ne\u0301", 0, "trajectory", 4.0),
    ]


def _value(tree: dict[str, Any], node_id: int) -> float:
    node = tree["nodes"][node_id]
    value: float = node["value_sum"] / node["visits"]
    return value


GOOD_TREE = [(1, 0, "safe.", True, 3.0, 4), (2, 0, "unsafe.", True, -3.0, 4)]


def test_building_pairs(tmp_path: Path) -> None:
    trees_ = artifact_of(tmp_path, [tree_of(GOOD_TREE, number) for number in range(3)])
    for make in (build_preference_pairs, build_prm_pairs):
        artifact = make(Recipe(), BuildOptions(root=tmp_path))
        assert validate_artifact(artifact) == []
        assert artifact.manifest.rows == 3
        assert artifact.manifest.parents == [trees_.as_parent()]
        assert artifact.manifest.details["funnel"]["pairs"] == 3
        assert make(Recipe(), BuildOptions(root=tmp_path)) == artifact
        assert make(Recipe(), BuildOptions(root=tmp_path, limit=2)).manifest.rows == 2


def test_not_one_pair_says_how_many_nodes_each_rule_left(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of([(1, 0, "a", False, 1.0, 3), (2, 0, "b", False, -1.0, 4)])])
    with pytest.raises(BuildError) as caught:
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    message = str(caught.value)
    assert "no pair for preference_pairs in trees@1.0.0 (1 trees, 2 nodes below their roots, 0 can" in message
    assert "Removed: unvisited 0, blank 0, too few visits 1, value too low 0, margin too small 0, too long 0" in message
    assert "Lower preference_pairs.min_margin (0.5)" in message
    assert not list((tmp_path / "preference_pairs").rglob("manifest.json"))
    section = {"min_visits": 1}
    recipe = Recipe.model_validate({"preference_pairs": section})
    assert build_preference_pairs(recipe, BuildOptions(root=tmp_path)).manifest.rows == 1


def test_answers_that_are_all_safe_make_pairs_by_margin_alone(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of([(1, 0, "helpful.", True, 12.0, 4), (2, 0, "idle.", True, 4.0, 4)])])
    section = {"granularity": "trajectory"}
    with pytest.raises(BuildError, match=r"iterations; .* set preference_pairs\.trajectory_rule to margin"):
        build_preference_pairs(Recipe.model_validate({"preference_pairs": section}), BuildOptions(root=tmp_path))
    recipe = Recipe.model_validate({"preference_pairs": section | {"trajectory_rule": "margin"}})
    (row,) = build_preference_pairs(recipe, BuildOptions(root=tmp_path)).scan().collect().to_dicts()
    assert (row["chosen"], row["rejected"], row["granularity"]) == ("helpful.", "idle.", "trajectory")


def test_pairs_without_trees(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"no complete trees under .*build trees"):
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))


def test_inputs_of_the_wrong_kind_or_two_of_the_right_one(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, [tree_of(GOOD_TREE)])
    other = artifact_of(tmp_path, [tree_of(GOOD_TREE, 1)])
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    with pytest.raises(UsageError, match=r"needs an input of kind trees; --input gave preference_pairs@1\.0\.0"):
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path, inputs=(str(pairs.folder),)))
    both = (artifact.reference, other.reference)
    with pytest.raises(UsageError, match="more than one --input of kind trees"):
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path, inputs=both))


def test_building_pairs_imports_nothing_that_talks_to_models() -> None:
    """A build of some thousand pairs takes less time than importing those."""
    program = "import sys, stairdata.generators.pairs.build; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"openai", "transformers", "torch", "datasets"} & set(done.stdout.split())


@pytest.mark.parametrize("build", [build_preference_pairs, build_prm_pairs])
@pytest.mark.parametrize(
    "actor",
    [
        ModelIdentity(role="actor", name="sft", revision="0123456789abcdef", tokenizer_hash="t"),
        ModelIdentity(role="actor", name="org/model"),
        None,
    ],
)
def test_pairs_say_which_model_wrote_their_trees(build: Any, actor: ModelIdentity | None, tmp_path: Path) -> None:
    judge = ModelIdentity(role="judge", name="j", revision="another")
    tree = tree_of([(1, 0, "a", True, 3.0, 4), (2, 0, "b", True, -3.0, 4)])
    trees_artifact = artifact_of(tmp_path, [tree], models=[judge, actor] if actor else [judge])
    pairs = build(Recipe(), BuildOptions(root=tmp_path)).manifest
    assert trees_artifact.manifest.actor == pairs.actor == actor
    assert ("actor" in pairs.details) == (actor is not None)
    assert pairs.models == [], "these enter the fingerprint"
