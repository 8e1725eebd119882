"""Paths too long: by tokens where trees have them, by bytes where not, and by a tokenizer where bytes can't tell."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.pairs.build import build_preference_pairs, pairs_of
from stairdata.generators.pairs.forest import lacks_tokens
from stairdata.generators.pairs.length_limit import TEMPLATE_BYTES, LengthLimit, tokenizer_identity
from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.recipe import PreferencePairsSection, PrmPairsSection, Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import rendering
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import BuildError
from stairdata_schemas.grammar import TAGS
from stairdata_training.tokens import dpo_row, prm_row
from tests.schemas.tokenizers import FAMILIES
from tests.stairdata.forests import Shape, artifact_of, frame_of, tree_of

SECTIONS: dict[str, Any] = {"preference_pairs": PreferencePairsSection, "prm_pairs": PrmPairsSection}
GOOD = "the answer is here " * 4
PAIR: Shape = [(1, 0, GOOD, True, 3.0, 4), (2, 0, "sorry", True, -3.0, 4)]
LONG = len("p0") + TEMPLATE_BYTES + len(GOOD) + 1  # the end of turn


def build(root: Path, **section: Any) -> Artifact:
    return build_preference_pairs(Recipe.model_validate({"preference_pairs": section}), BuildOptions(root=root))


def test_tokens_of_the_trees_decide_alone(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, [tree_of(PAIR, tokens=3)])
    assert not lacks_tokens(artifact)
    assert build(tmp_path, max_tokens=9, tokenizer="./not-there").manifest.models == []
    with pytest.raises(BuildError, match="too long 1"):
        build(tmp_path, max_tokens=8)


def test_bytes_are_enough_for_what_is_short(tmp_path: Path) -> None:
    assert lacks_tokens(artifact_of(tmp_path, [tree_of(PAIR, tokens=None)]))
    assert build(tmp_path, max_tokens=LONG).manifest.rows == 1


def test_what_bytes_can_not_tell_needs_a_tokenizer_and_the_build_names_the_option(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of(PAIR, tokens=None)])
    with pytest.raises(BuildError) as caught:
        build(tmp_path, max_tokens=LONG - 1)
    assert "1 nodes that would be used have no `tokens`" in str(caught.value)
    assert "`--set preference_pairs.tokenizer=FOLDER`" in str(caught.value)
    assert not list((tmp_path / "preference_pairs").rglob("manifest.json"))
    recipe = Recipe.model_validate({"structured_cot": {"from_trees": {"max_tokens": LONG - 1}}})
    with pytest.raises(BuildError, match=r"--set structured_cot\.from_trees\.tokenizer=FOLDER"):
        build_structured_cot(recipe, BuildOptions(root=tmp_path))


def test_a_long_node_that_is_in_no_pair_asks_for_nothing(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of([*PAIR, (3, 0, GOOD * 9, False, 0.0, 1)], tokens=None)])
    assert build(tmp_path, max_tokens=LONG).manifest.rows == 1


def test_a_tokenizer_measures_what_training_will_see(tmp_path: Path, tokenizer_folder: Path) -> None:
    artifact_of(tmp_path, [tree_of(PAIR, tokens=None)])
    tokenizer = rendering.load_tokenizer(tokenizer_folder)
    tokens = len(rendering.encode_prompt(tokenizer, "p0", GOOD)) + 1
    assert tokens < LONG
    named = str(tokenizer_folder)
    artifact = build(tmp_path, max_tokens=tokens, tokenizer=named)
    assert artifact.manifest.rows == 1
    assert artifact.manifest.models == [tokenizer_identity(named)]
    assert artifact.manifest.models[0].tokenizer_hash
    with pytest.raises(BuildError, match="too long 1"):
        build(tmp_path, max_tokens=tokens - 1, tokenizer=named)


def test_the_actors_tokenizer_is_the_default(tmp_path: Path, tokenizer_folder: Path) -> None:
    artifact_of(tmp_path, [tree_of(PAIR, tokens=None)])
    recipe = Recipe.model_validate(
        {"actor": {"tokenizer": str(tokenizer_folder)}, "preference_pairs": {"max_tokens": LONG - 1}}
    )
    assert build_preference_pairs(recipe, BuildOptions(root=tmp_path)).manifest.rows == 1


def test_each_step_is_tokenised_once_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape: Shape = [(1, 0, f"{TAGS[0]} {'shared ' * 38}{TAGS[1]}", False, 0.0, 1)]
    shape += [(number, 1, f"{number} " * 40, True, 3.0 if number % 2 else -3.0, 4) for number in range(2, 9)]
    artifact_of(tmp_path, [tree_of(shape, number, tokens=None) for number in range(2)])
    calls: list[list[str]] = []

    class Tokenizer:
        chat_template = "words"
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

        def __len__(self) -> int:
            return 0

        def __call__(self, texts: str | list[str], *, add_special_tokens: bool) -> dict[str, Any]:
            assert not add_special_tokens
            if isinstance(texts, str):
                return {"input_ids": self._words(texts)}
            calls.append(texts)
            return {"input_ids": [self._words(text) for text in texts]}

        def _words(self, text: str) -> list[str]:
            return re.findall(r"<\|[^|]*\|>|[^\s<]+|<", text)

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return f"(user) {messages[0]['content']} (assistant)"

    monkeypatch.setattr("stairdata.generators.pairs.length_limit.rendering.load_tokenizer", lambda _: Tokenizer())
    assert build(tmp_path, max_tokens=3 + 40 + 41, tokenizer="words").manifest.rows == 2 * 3 * 4
    (texts,) = calls
    assert len(texts) == len(set(texts)) + 8 == 16, "two trees of the same eight steps"
    calls.clear()
    with pytest.raises(BuildError, match="too long 24"):
        build(tmp_path, max_tokens=3 + 40 + 40, tokenizer="words")


def test_known_tokens_are_used_and_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of(PAIR, tokens=None)
    tree["nodes"][0]["tokens"] = 100
    artifact_of(tmp_path, [tree])
    assert build(tmp_path, max_tokens=101 + len(GOOD)).manifest.rows == 1
    with pytest.raises(BuildError, match="name the actor's"):
        build(tmp_path, max_tokens=101 + len(GOOD) - 1)
    with pytest.raises(BuildError, match="too long 1"):
        build(tmp_path, max_tokens=100)


@st.composite
def trees_of_steps(draw: st.DrawFn) -> dict[str, Any]:
    """A tree of steps in the grammar and beside it, each of them once; whole answers are terminal."""
    shape: Shape = []
    ends: set[int] = set()
    for number in range(1, draw(st.integers(3, 8))):
        parent = draw(st.sampled_from([node for node in range(number) if node not in ends]))
        body = f"{number} {draw(st.sampled_from(['ab', 'the answer', '東京 é', '👩🏽‍🚀']))}"
        before = draw(st.sampled_from(["", "\n\n", " \n", "x a"]))
        step = before + draw(
            st.sampled_from(
                [f"{TAGS[0]}\nTitle: {body}\n{TAGS[1]}", f"{TAGS[2]}\nFinal Answer:\n{body}\n{TAGS[3]}", body]
            )
        )
        is_terminal = not step.endswith(TAGS[1])
        ends |= {number} if is_terminal else set()
        shape.append((number, parent, step, is_terminal, draw(st.sampled_from([-3.0, 0.5, 3.0])), 1))
    return tree_of(shape, tokens=None)


def record_tokens(tree: dict[str, Any], tokenizer: Any) -> None:
    """Write down the tokens of each node, as trees that are grown here have them."""
    count = rendering.TokenCounter(tokenizer)
    said = [rendering.render_prompt(tokenizer, tree["prompt"])]
    tree["nodes"][0]["tokens"] = said[0].count(count)
    for node in tree["nodes"][1:]:
        before = said[node["parent_id"]]
        node["tokens"] = before.count_next(node["step"], count)
        said.append(before.plus(node["step"]))


@pytest.mark.parametrize("is_recorded", [True, False], ids=["tokens of the trees", "measured"])
@given(family=st.sampled_from([*FAMILIES]), tree=trees_of_steps(), data=st.data())
@settings(max_examples=6)
def test_max_tokens_of_pairs_is_max_length_of_training(
    family: str, tree: dict[str, Any], data: st.DataObject, *, is_recorded: bool
) -> None:
    tokenizer = FAMILIES[family]
    if is_recorded:
        record_tokens(tree, tokenizer)

    def pairs(kind: str, max_tokens: int) -> list[dict[str, Any]]:
        make, thresholds = SECTIONS[kind], {"min_margin": 0.0, "min_chosen_value": -9.0, "min_visits": 1}
        section = make(max_tokens=max_tokens, **thresholds)
        length_limit = LengthLimit(max_tokens, family, "tokenizer")
        return pairs_of(kind, frame_of([tree]), section, Counter(), 42, length_limit).to_dicts()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stairdata.generators.pairs.length_limit.rendering.load_tokenizer", lambda _: tokenizer)
        for kind, row in (("preference_pairs", dpo_row), ("prm_pairs", prm_row)):
            lengths = {pair["pair_id"]: row(tokenizer, pair)["length"] for pair in pairs(kind, 10**6)}
            max_tokens = data.draw(st.sampled_from(sorted({1, *lengths.values()}))) - data.draw(st.integers(0, 1))
            kept = {pair["pair_id"] for pair in pairs(kind, max(1, max_tokens))}
            assert kept == {pair_id for pair_id, length in lengths.items() if length <= max_tokens}


def test_files_of_a_tokenizer_tell_it_apart(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tokenizer.json").write_text("{}")
    first = tokenizer_identity(str(tmp_path / "t"))
    (tmp_path / "t" / "chat_template.jinja").write_text("x")
    assert first != tokenizer_identity(str(tmp_path / "t"))
    assert tokenizer_identity("org/name").name == "org/name"
