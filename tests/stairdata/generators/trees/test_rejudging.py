"""Trees that are rated again: nothing is sampled, visits stay, and values follow from the new rewards."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stairdata.generators.forecast import forecast_trees
from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.generators.trees.build import build_trees
from stairdata.generators.trees.rejudged_rows import StoredAnswer, stored_answers, with_rewards
from stairdata.llm.budget import BudgetLimits
from stairdata.recipe import Recipe
from stairdata.runs.executors.executor import Execution
from stairdata.runs.options import BuildOptions
from stairdata.search.reward import rate
from stairdata_review.reviews import Source, build_reviews
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BudgetError, BuildError, InputError, UsageError
from tests.review.samples import review
from tests.stairdata.forests import artifact_of, tree_of

if TYPE_CHECKING:
    from tests.conftest import StubServer

JUDGED_ANEW = ["nodes", "requests", "prompt_tokens", "completion_tokens", "seconds"]
CLI = [sys.executable, "-c", "import sys; sys.modules['torch'] = None; from stairdata.cli.main import main; main()"]
MakeRecipe = Callable[..., Recipe]
Grow = Callable[..., Artifact]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def recipe_of(actor_section: dict[str, Any]) -> MakeRecipe:
    def make(judge: dict[str, Any], *, prices: dict[str, Any] | None = None, **section: Any) -> Recipe:
        trees = {"iterations": 8, "samples": 3, "max_depth": 3, "judge": judge, **section}
        return Recipe.model_validate({"actor": actor_section | {"retries": 2}, "trees": trees, "prices": prices or {}})

    return make


@pytest.fixture
def grow(
    recipe_of: MakeRecipe, make_prompts: Callable[[int], Artifact], root: Path, stub_llm: StubServer, waits: list[float]
) -> Grow:
    """Grow trees by a judge whose ratings do not depend on seeds."""

    def make(count: int = 3, **judge: Any) -> Artifact:
        stub_llm.control(seedless_ratings=True)
        prompts = make_prompts(count)
        return build_trees(recipe_of(judge), BuildOptions(root=root, inputs=(str(prompts.folder),)))

    return make


def rejudge(recipe: Recipe, root: Path, reference: str = "trees@1.0.0", **options: Any) -> Artifact:
    return build_trees(recipe, BuildOptions(root=root, **options), rejudge=reference)


def nodes_of(artifact: Artifact) -> pl.DataFrame:
    rows = artifact.scan().select("tree_id", pl.col("nodes")).collect()
    return rows.explode("nodes").unnest("nodes")


@pytest.mark.parametrize("judge", [{"kind": "self"}, {"kind": "self", "cache": False}, {"kind": "reference"}])
def test_the_same_judge_gives_the_same_values(
    judge: dict[str, Any], grow: Grow, recipe_of: MakeRecipe, root: Path, stub_llm: StubServer
) -> None:
    before = grow(**judge)
    sampled = stub_llm.stats()["requests"] - stub_llm.stats()["ratings"]
    after = rejudge(recipe_of(judge), root)
    assert (after.reference, after.manifest.rows) == ("trees@1.1.0", 3)
    assert stub_llm.stats()["requests"] - stub_llm.stats()["ratings"] == sampled, "nothing is sampled"
    assert validate_artifact(after) == []
    was, now = nodes_of(before), nodes_of(after)
    assert now["value_sum"].to_list() == pytest.approx(was["value_sum"].to_list())
    assert now.drop("value_sum").equals(was.drop("value_sum"))
    rows, others = (artifact.scan().drop(JUDGED_ANEW).collect() for artifact in (before, after))
    assert rows.equals(others)


def test_another_judge_changes_values_and_no_visit(
    grow: Grow, recipe_of: MakeRecipe, root: Path, stub_llm: StubServer
) -> None:
    before = grow(kind="reference")
    stub_llm.control(judge_text="Score: 2")
    after = rejudge(recipe_of({"kind": "self", "keep_text": True}, k1=2.0), root)
    was, now = nodes_of(before), nodes_of(after)
    stays = ["node_id", "parent_id", "depth", "step", "is_terminal", "visits", "prior", "tokens"]
    assert now.select(stays).equals(was.select(stays))
    value = rate(-0.5, -0.5, k1=2.0).reward
    assert (now["value_sum"] / now["visits"]).to_list() == pytest.approx([value] * len(now))
    texts = after.scan().select(pl.col("judgements").explode().struct.field("text")).collect()["text"]
    assert set(texts) == {"Score: 2"}
    manifest = after.manifest
    assert [parent.version for parent in manifest.parents] == ["1.0.0"]
    assert [(model.role, model.name) for model in manifest.models] == [("judge", "actor")]
    assert manifest.actor == before.manifest.actor
    assert "visits" in manifest.notes[0]
    assert "reference" in manifest.notes[0]
    assert manifest.usage.requests == stub_llm.stats()["ratings"]
    again = rejudge(recipe_of({"kind": "rule"}), root, after.reference)
    assert again.manifest.same_trees == [manifest.content_hash, before.manifest.content_hash]
    assert rejudge(recipe_of({"kind": "rule"}), root, after.reference).reference == again.reference, "it was finished"


def test_a_budget_stops_it_and_no_rating_is_asked_for_twice(
    grow: Grow, recipe_of: MakeRecipe, root: Path, stub_llm: StubServer
) -> None:
    grow(kind="reference")
    recipe = recipe_of({"kind": "self"})
    stub_llm.reset()
    with pytest.raises(BudgetError):
        rejudge(recipe, root, limits=BudgetLimits(total_tokens=9000))
    answered = stub_llm.stats()["requests"]
    assert answered > 5
    after = rejudge(recipe, root)
    stats = stub_llm.stats()
    assert stats["requests"] == stats["distinct"] == after.manifest.usage.requests > answered
    assert after.reference == "trees@1.1.0"


@pytest.mark.slow
def test_a_killed_rejudging_goes_on_where_it_stood(
    grow: Grow, actor_section: dict[str, Any], root: Path, stub_llm: StubServer, tmp_path: Path
) -> None:
    grow(kind="reference")
    stub_llm.reset()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"actor": actor_section | {"concurrency": 4}}))
    command = [*CLI, "build", "trees", "--rejudge", "trees@1.0.0", "--recipe", str(recipe), "--root", str(root)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stub_llm.control(kill_pid=killed.pid, kill_after=30, delay=0.002)
    assert killed.wait(timeout=120) == -signal.SIGKILL
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert finished.stdout == "trees@1.1.0\n"
    stats = stub_llm.stats()
    assert stats["requests"] <= stats["distinct"] + 4, "at most as many are lost as may be in flight"


def test_a_tree_whose_judge_can_not_be_read_is_refused_and_tried_again(
    grow: Grow, recipe_of: MakeRecipe, root: Path, stub_llm: StubServer
) -> None:
    grow(2, kind="reference")
    recipe = recipe_of({"kind": "self", "reasks": 0})
    stub_llm.control(judge_text="Hm.")
    with pytest.raises(BuildError, match="judge_failure 2"):
        rejudge(recipe, root)
    stub_llm.control(judge_text=None)
    assert rejudge(recipe, root).manifest.rows == 2


def test_reviews_of_the_same_trees_count_where_they_are_named(grow: Grow, recipe_of: MakeRecipe, root: Path) -> None:
    trees = grow(kind="reference")
    rules = Recipe.model_validate({"preference_pairs": {"min_margin": 0.1, "min_chosen_value": -9, "min_visits": 1}})
    pairs = build_preference_pairs(rules, BuildOptions(root=root, inputs=(trees.reference,)))
    pair_id = pairs.scan().select("pair_id").collect()["pair_id"][0]
    build_reviews([review(pair_id, "ann", "chosen")], pairs, Source("dataset", "pairs", "pairs/1"), root)
    again = rejudge(recipe_of({"kind": "reference"}, k2=0.5), root)
    options = BuildOptions(root=root, inputs=(again.reference,))
    assert "reviews" not in build_preference_pairs(rules, options).manifest.details
    reviewed = build_preference_pairs(rules, options, "reviews")
    assert reviewed.manifest.details["reviews"]["confirmed"] == 1
    assert any("another judge" in note for note in reviewed.manifest.notes)


def test_a_dry_run_counts_the_answers(grow: Grow, recipe_of: MakeRecipe, root: Path) -> None:
    trees = grow(kind="reference")
    nodes = nodes_of(trees)
    answers = int(nodes["rollouts"].list.len().sum()) + int(nodes["reward"].is_not_null().sum())
    found = forecast_trees(recipe_of({"kind": "self"}), BuildOptions(root=root), rejudge=trees.reference)
    assert [(model.role, model.requests) for model in found.models] == [("judge", 2 * answers)]
    assert f"{answers} answers of 3 trees" in found.words
    assert not (root / "trees" / "1.1.0").exists()


def test_a_guard_model_judges_trees(grow: Grow, recipe_of: MakeRecipe, root: Path, stub_llm: StubServer) -> None:
    """Trees that are grown by a guard's word, and trees that are rated again by it, the actor rating helpfulness."""
    said = "Safety: Controversial\nCategories: Violent\nRefusal: No"
    stub_llm.control(also=["guard"], says={"guard": said})
    guard = {"base_url": stub_llm.base_url, "model": "guard"}
    judge = {"kind": "guard", "guard": "qwen3guard", "endpoint": guard, "labels": {"controversial": -0.25}}
    before = grow(2, **judge)
    after = rejudge(recipe_of(judge), root)
    for artifact in (before, after):
        rated = nodes_of(artifact)["rollouts"].explode().drop_nulls().struct
        assert set(rated.field("safety")) == {-0.25}
        assert len(set(rated.field("helpfulness"))) > 1
    assert nodes_of(after)["value_sum"].to_list() == pytest.approx(nodes_of(before)["value_sum"].to_list())
    assert [(model.role, model.name) for model in after.manifest.models] == [("judge", "actor"), ("judge", "guard")]
    found = forecast_trees(recipe_of(judge | {"helpfulness": guard}), BuildOptions(root=root), rejudge="trees@1.0.0")
    assert [(model.role, model.name) for model in found.models] == [("judge", "guard"), ("helpfulness judge", "guard")]
    stub_llm.control(says={"guard": "Safety: Unsure"})
    with pytest.raises(BuildError, match="judge_failure 2"):
        rejudge(recipe_of(judge | {"reasks": 0}), root)


SHAPE = [(1, 0, "a", False, 1.0, 0), (2, 0, "b", True, 2.0, 3), (3, 1, "c", True, -1.0, 2)]


def stored(**columns: Any) -> dict[str, Any]:
    """A tree with one rollout, and a terminal node at each depth."""
    row = tree_of(SHAPE, **columns)
    nodes = row["nodes"]
    for node in nodes[:2]:
        node["visits"] += 1
        node["value_sum"] += 0.5
    nodes[1]["rollouts"] = [{"text": "rest", "helpfulness": 0.0, "safety": 0.25, "reward": 0.5}]
    return row


def test_trees_that_can_not_be_rated_again(recipe_of: MakeRecipe, root: Path, make_prompts: Any) -> None:
    bare = stored()
    bare["nodes"][1]["rollouts"] = []
    imported = artifact_of(root, [stored(number=1), bare], generator="thu-ml-trees/1")
    without_task = artifact_of(root, [stored(task=None)])
    prompts = make_prompts(1)
    by_words, by_actor = recipe_of({"kind": "reference"}), recipe_of({"kind": "self"})
    for recipe, reference, inputs, error, words in [
        (by_actor, imported.reference, (), InputError, r"row 1 of trees@1.0.0 .*node 1 was evaluated 1 times .* 0 "),
        (by_words, without_task.reference, (), InputError, "row 0 of trees@1.1.0 has no task"),
        (by_words, imported.reference, (), InputError, "row 1 of trees@1.0.0"),
        (by_actor, str(prompts.folder), (), UsageError, "of kind prompts"),
        (by_actor, imported.reference, (str(prompts.folder),), UsageError, "judge of kind reference"),
    ]:
        with pytest.raises(error, match=words):
            rejudge(recipe, root, reference, inputs=inputs)
    whole = artifact_of(root, [stored()])
    with pytest.raises(InputError, match=r"not under .*name them with --input"):
        rejudge(by_words, root, whole.reference)
    with pytest.raises(InputError, match=r"its prompt is not in prompts@1.0.0"):
        rejudge(by_words, root, whole.reference, inputs=(str(prompts.folder),))
    with pytest.raises(UsageError, match="it is not asked; give the judge's as --endpoints judge=URL,URL"):
        build_trees(by_words, BuildOptions(root=root), Execution(endpoints=("http://h/v1",)), whole.reference)
    with pytest.raises(UsageError, match="grows no tree"):
        build_trees(by_actor, BuildOptions(root=root), Execution("ray"), whole.reference)
    assert sorted(path.name for path in (root / "trees").glob("[0-9]*")) == ["1.0.0", "1.1.0", "1.2.0"]


def test_the_answers_of_a_tree() -> None:
    assert stored_answers(stored()["nodes"]) == {
        StoredAnswer(1, 0): "arest", StoredAnswer(2, None): "b", StoredAnswer(3, None): "ac",
    }  # fmt: skip


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_values_are_the_sums_of_the_rewards_below(scores: list[float]) -> None:
    nodes = stored()["nodes"]
    one, two, three = (rate(*scores[at : at + 2]) for at in (0, 2, 4))
    places = [StoredAnswer(1, 0), StoredAnswer(2, None), StoredAnswer(3, None)]
    rated = with_rewards(nodes, dict(zip(places, (one, two, three), strict=True)))
    below = one.reward + 2 * three.reward
    sums = [below + 3 * two.reward, below, 3 * two.reward, 2 * three.reward]
    assert [node["value_sum"] for node in rated] == pytest.approx(sums)
    assert [node["visits"] for node in rated] == [node["visits"] for node in nodes]
    kept = {"text": "rest", "helpfulness": one.helpfulness, "safety": one.safety, "reward": one.reward}
    assert rated[1]["rollouts"] == [kept]
    assert (rated[2]["reward"], rated[2]["safety"]) == (two.reward, two.safety)
