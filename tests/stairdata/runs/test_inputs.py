"""Inputs are looked up once: the parents that a manifest names are those that the rows come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.cli.train import train
from stairdata.generators.forecast import forecast_responses, forecast_trees
from stairdata.generators.pairs.build import build_preference_pairs, build_prm_pairs
from stairdata.generators.responses.build import build_responses
from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.generators.structured_cot.cost_estimate import forecast_structured_cot
from stairdata.generators.trees.build import build_trees
from stairdata.hub.content import PushOptions
from stairdata.hub.push import push
from stairdata.recipe import Recipe
from stairdata.runs.forecast import Forecast
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BuildOptions
from stairdata_review.reviews import Source, build_reviews
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.errors import ArtifactError, ArtifactNotFoundError, UsageError
from stairdata_training.plan import TrainingPlan
from tests.review.samples import answer, block, review
from tests.stairdata.forests import Shape, artifact_of, tree_of

if TYPE_CHECKING:
    from tests.conftest import HubServer, StubServer

Builder = Callable[..., Artifact | None]
Forecaster = Callable[[Recipe, BuildOptions], Forecast]
SHAPE: Shape = [
    (1, 0, block("Facts:", "f"), False, 1.0, 4),
    (2, 0, block("Facts:", "g"), False, 0.0, 4),
    (3, 1, answer("one"), True, 2.0, 4),
    (4, 1, answer("two"), True, 0.0, 4),
]
BUILDS: dict[str, tuple[Builder, Forecaster | None]] = {
    "trees": (build_trees, forecast_trees),
    "responses": (build_responses, forecast_responses),
    "structured_cot by a teacher": (build_structured_cot, forecast_structured_cot),
    "structured_cot of trees": (build_structured_cot, forecast_structured_cot),
    "preference_pairs": (build_preference_pairs, None),
    "prm_pairs": (build_prm_pairs, None),
}
BEGINS = ["stairdata.runs.build.begin_build", "stairdata.generators.structured_cot.plan.begin_build"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def recipe(actor_section: dict[str, Any], stub_llm: StubServer) -> Recipe:
    teacher = {"base_url": stub_llm.base_url, "model": "actor"}
    return Recipe.model_validate(
        {
            "actor": actor_section,
            "trees": {"iterations": 3, "samples": 2, "max_depth": 2},
            "structured_cot": {"teacher": teacher},
            "preference_pairs": {"reviews": {"unreviewed": "drop"}},
        }
    )


@pytest.fixture
def before_each_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Do something, once, after a build is planned and before it reads rows."""

    def arrange(act: Callable[[], object]) -> None:
        from stairdata_schemas.building import begin_build

        waiting = [act]

        def begin(*arguments: Any, **options: Any) -> Any:
            if waiting:
                waiting.pop()()
            return begin_build(*arguments, **options)

        for place in BEGINS:
            monkeypatch.setattr(place, begin)

    return arrange


def trees_in(root: Path, first: int) -> Artifact:
    """Make the next version of trees, of two prompts that no other version has."""
    return artifact_of(root, [tree_of(SHAPE, first), tree_of(SHAPE, first + 1)])


def verdicts(pairs: Artifact, said: str) -> Artifact:
    """Make the next version of reviews, which say the same of each pair."""
    rows = [review(pair_id, "ann", said) for pair_id in pairs.scan().select("pair_id").collect()["pair_id"]]
    return build_reviews(rows, pairs, Source("dataset", "pairs", said), pairs.folder.parent.parent)


def prompts_of(artifact: Artifact) -> set[str]:
    return set(artifact.scan().select("prompt").collect()["prompt"])


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("name", BUILDS)
def test_a_version_that_appears_after_planning_changes_nothing(
    name: str,
    recipe: Recipe,
    root: Path,
    make_prompts: Callable[[int], Artifact],
    before_each_build: Callable[[Callable[[], object]], None],
) -> None:
    build, _ = BUILDS[name]
    takes_trees = name.endswith(("pairs", "of trees"))
    parent = trees_in(root, 0) if takes_trees else make_prompts(2)
    newer = (lambda: trees_in(root, 2)) if takes_trees else (lambda: make_prompts(4))
    before_each_build(newer)
    inputs = ("trees",) if name.endswith("of trees") else ()
    built = build(recipe, BuildOptions(root=root, inputs=inputs, max_quarantine=1.0))
    assert built is not None
    assert resolve(parent.kind, root).reference == f"{parent.kind}@1.1.0", "a newer version appeared"
    assert [each.content_hash for each in built.manifest.parents] == [parent.manifest.content_hash]
    assert prompts_of(built) == prompts_of(parent)


@pytest.mark.parametrize("name", BUILDS)
def test_an_unfinished_input_is_never_read(
    name: str, recipe: Recipe, root: Path, make_prompts: Callable[[int], Artifact]
) -> None:
    build, _ = BUILDS[name]
    takes_trees = name.endswith(("pairs", "of trees"))
    whole, unfinished = [(trees_in(root, n) if takes_trees else make_prompts(2 + n)) for n in (0, 2)]
    (unfinished.folder / "manifest.json").unlink()  # the last file that a build writes
    assert resolve(whole.kind, root).reference == whole.reference
    for named in (unfinished.reference, str(unfinished.folder)):
        with pytest.raises(ArtifactError, match=r"has no manifest\.json: the artifact is incomplete"):
            build(recipe, BuildOptions(root=root, inputs=(named,)))
    assert {path.parent.name for path in root.glob("*/*")} == {whole.kind}, "nothing was begun"


def test_reviews_that_appear_after_planning_change_nothing(
    root: Path, before_each_build: Callable[[Callable[[], object]], None]
) -> None:
    trees_in(root, 0)
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=root))
    first = verdicts(pairs, "chosen")
    before_each_build(lambda: verdicts(pairs, "rejected"))
    built = build_preference_pairs(Recipe(), BuildOptions(root=root), "reviews")
    assert resolve("reviews", root).reference == "reviews@1.1.0"
    assert built.manifest.parents[1].content_hash == first.manifest.content_hash
    assert built.manifest.details["reviews"]["confirmed"] == first.manifest.rows


def test_training_takes_its_rows_out_of_the_version_that_its_fingerprint_names(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees_in(root, 0)
    build_preference_pairs(Recipe(), BuildOptions(root=root))
    seen: list[tuple[list[str], str]] = []

    class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
        pass

    def train_nothing(plan: TrainingPlan, *_: Any) -> None:
        seen.append((plan.rows()["pair_id"], plan.fingerprint))
        raise TrainingStopped

    def appear(*_: Any) -> None:
        trees_in(root, 2)
        build_preference_pairs(Recipe(), BuildOptions(root=root))

    monkeypatch.setattr("stairdata_training.running.train", train_nothing)
    for reference, act in (("preference_pairs@1.0.0", lambda *_: None), ("preference_pairs", appear)):
        monkeypatch.setattr(TrainingPlan, "finished", act)
        with pytest.raises(TrainingStopped):
            train("dpo", input_=[reference], root=root, model="base", output=tmp_path / "dpo")
    assert resolve("preference_pairs", root).reference == "preference_pairs@1.1.0"
    assert seen[0] == seen[1]


# -- references to the Hub -----------------------------------------------------------------------------------


@pytest.fixture
def publish(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[Artifact], None]:
    """Push an artifact to a repository of its kind's name."""
    monkeypatch.setattr("stairdata.hub.attempts.wait", lambda _: None)
    monkeypatch.setattr("stairdata.hub.client.LONGEST_WAIT", 0.0)
    monkeypatch.setattr("stairdata.hub.plots.available", lambda: False)

    def pushed(artifact: Artifact) -> None:
        push(artifact, PushOptions(f"org/{artifact.kind}"))

    return pushed


def looked_up(hub: HubServer) -> list[str]:
    """Return the repositories whose releases were asked for since the last time, once for each request."""
    requests = [request for request in hub.requests if request.endswith("/refs")]
    hub.control(recount=True)
    return [request.split("/")[-2] for request in requests]


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("name", BUILDS)
def test_a_release_is_looked_up_once(
    name: str,
    recipe: Recipe,
    root: Path,
    hub: HubServer,
    publish: Callable[[Artifact], None],
    make_prompts: Callable[[int], Artifact],
) -> None:
    build, forecast = BUILDS[name]
    source = trees_in(root, 0) if name.endswith(("pairs", "of trees")) else make_prompts(2)
    publish(source)
    own: tuple[str, ...] = ()
    if name == "preference_pairs":
        publish(verdicts(build_preference_pairs(Recipe(), BuildOptions(root=root)), "chosen"))
        own = ("org/reviews",)
    looked_up(hub)
    options = BuildOptions(root=root.parent / "mine", inputs=(f"org/{source.kind}",), max_quarantine=1.0)
    if forecast is not None:
        forecast(recipe, options)
        assert looked_up(hub) == [source.kind]
    built = build(recipe, options, *own)
    assert built is not None
    assert looked_up(hub) == [source.kind, *(["reviews"] if own else [])]
    assert built.manifest.parents[0].repo == f"org/{source.kind}"
    if name == "trees":
        assert "2 in all, 1 of them grown" in forecast_trees(recipe, replace(options, fresh=True), pilot=1).words
        assert looked_up(hub) == ["prompts"]


# -- which input is meant ------------------------------------------------------------------------------------


def test_the_given_input_goes_before_the_newest(root: Path) -> None:
    first, second = trees_in(root, 0), trees_in(root, 2)
    assert Inputs((), root).of("trees") == second
    assert Inputs([str(first.folder)], root).of("trees") == first
    assert not Inputs((), root).names("trees")
    assert Inputs(["trees"], root).names("trees")


def test_the_newest_is_the_same_each_time(root: Path) -> None:
    first, inputs = trees_in(root, 0), Inputs((), root)
    assert inputs.of("trees") == first
    trees_in(root, 2)
    assert inputs.of("trees") == first


def test_two_inputs_of_a_kind_or_none_of_it(root: Path) -> None:
    trees_in(root, 0)
    trees_in(root, 2)
    inputs = Inputs(["trees@1.0.0", "trees"], root)
    with pytest.raises(UsageError, match=r"^more than one --input of kind trees: trees@1\.0\.0, trees$"):
        inputs.of("trees")
    with pytest.raises(
        UsageError, match=r"^this build needs an input of kind prompts; --input gave trees@1\.0\.0, trees@1\.1\.0$"
    ):
        inputs.of("prompts")
    with pytest.raises(ArtifactNotFoundError, match="no complete prompts under"):
        Inputs((), root).of("prompts")


def test_what_a_build_does_not_need_is_not_opened(root: Path, tmp_path: Path) -> None:
    """A forecast of rows out of a file asks nobody, whatever --input says."""
    recipe = Recipe.model_validate({"structured_cot": {"path": str(tmp_path / "rows.jsonl")}})
    options = BuildOptions(root=root, inputs=("org/nothing",))
    assert forecast_structured_cot(recipe, options) == Forecast("structured_cot")
