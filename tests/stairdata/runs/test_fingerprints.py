"""Changing a key of the recipe changes a build's fingerprint exactly when the key can change its rows."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from stairdata.generators.pairs import build as pairs
from stairdata.generators.prompts import build as prompts
from stairdata.generators.responses import build as responses
from stairdata.generators.structured_cot import from_trees, plan
from stairdata.generators.trees.build import plan_trees
from stairdata.recipe import (
    CotJudge,
    Endpoint,
    FromTreesSection,
    JudgeSection,
    PreferencePairsSection,
    PrmPairsSection,
    PromptSource,
    PromptsSection,
    Recipe,
    ResponsesSection,
    StructuredCotSection,
    TaskJudge,
    Teacher,
    TreesSection,
)
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan
from stairdata_schemas.fingerprints import counted, uncounted_fields

if TYPE_CHECKING:
    from tests.conftest import StubServer

UNCOUNTED: dict[type[BaseModel], set[str]] = {
    PromptSource: {"path", "license"},
    Endpoint: {
        "path", "base_url", "model", "tokenizer", "api_key_env", "concurrency", "timeout", "retries", "retry_seconds",
        "port",
    },
    PromptsSection: {"sources", "decontaminate", "tokenizer", "task_judge", "concurrency"},
    JudgeSection: set(),
    TreesSection: {"concurrency"},
    PreferencePairsSection: {"tokenizer"},
    PrmPairsSection: {"tokenizer"},
    FromTreesSection: {"tokenizer"},
    StructuredCotSection: {
        "from_trees", "path", "hub", "like", "revision", "license", "teacher", "teachers", "templates", "batch",
        "concurrency",
    },
    ResponsesSection: {"prm", "concurrency"},
}  # fmt: skip
"""Pinned: a mark says that a key can't change rows, or counts by its content. Add one on purpose only."""
OTHER_VALUES: dict[str, Any] = {
    "columns": {"prompt": "question"},
    "where": {"language": "English"},
    "languages": ["de"],
    "min_margin_by_depth": {"1": 0.9},
    "hold_out": 0.25,
    "min_steps": 2,
    "max_steps": 11,
    "revision": "0" * 40,
    "like": "PKU-Alignment/PKU-SafeRLHF",
}
"""Where another value can't be told from the type."""


def other_value(name: str, field: FieldInfo, now: Any) -> Any:
    """Return a valid value of a field that differs from the one it has; `now` itself where there is no other."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    arms = _arms(field.annotation)
    choices = [choice for arm in arms if get_origin(arm) is Literal for choice in get_args(arm)]
    near: list[Any] = [now + 1, now / 2, now - 1] if isinstance(now, int | float) and not isinstance(now, bool) else []
    flag = [not now] if bool in arms else []
    adapter = TypeAdapter(field.rebuild_annotation())
    for value in [*choices, *flag, *near, 3, 0.5, "another", {}]:
        try:
            if adapter.validate_python(value) != now:
                return value
        except ValueError:
            continue
    assert len(choices) == 1, f"give another value for {name} in OTHER_VALUES"
    return now


def _arms(annotation: Any) -> list[Any]:
    if get_origin(annotation) in {Union, UnionType}:
        return [arm for each in get_args(annotation) for arm in _arms(each)]
    if get_origin(annotation) is Annotated:
        return _arms(get_args(annotation)[0])
    return [annotation]


class Change(NamedTuple):
    """Another value of a key, and whether the key counts."""

    where: tuple[str, ...]
    value: Any
    counts: bool


def changes(section: BaseModel, path: tuple[str, ...], leave: Container[str] = ()) -> list[Change]:
    """Return a change of every key of a section, and of those inside it, but for some that have a test of their own."""
    found = []
    for name, field in type(section).model_fields.items():
        now = getattr(section, name)
        counts = name not in uncounted_fields(type(section))
        if name in leave:
            continue
        if isinstance(now, BaseModel):
            found += [each._replace(counts=counts and each.counts) for each in changes(now, (*path, name), leave)]
        elif (value := other_value(name, field, now)) != now:
            found.append(Change((*path, name), value, counts))
    return found


def changed(recipe: dict[str, Any], where: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a recipe with one key set."""
    key, *rest = where
    inner = recipe.get(key) or {}
    return {**recipe, key: changed(inner, tuple(rest), value) if rest else value}


def check(base: dict[str, Any], found: list[Change], planned: Callable[[Recipe], BuildPlan]) -> None:
    """Change each key and compare fingerprints."""
    assert found
    wrong = []
    for change in found:
        start = base
        if change.where[-1] == "part":  # it goes with a share that is held out
            start = changed(base, (*change.where[:-1], "hold_out"), 0.25)
        before = planned(Recipe.model_validate(start)).fingerprint
        after = planned(Recipe.model_validate(changed(start, change.where, change.value))).fingerprint
        if (after != before) != change.counts:
            wrong.append(change)
    assert wrong == []


@pytest.fixture
def actor(stub_llm: StubServer, actor_section: dict[str, Any]) -> dict[str, Any]:
    return {"actor": actor_section}


def test_the_marked_fields_are_these() -> None:
    assert {section: uncounted_fields(section) for section in UNCOUNTED} == UNCOUNTED
    for judge in (TaskJudge, CotJudge, Teacher):
        assert uncounted_fields(judge) == UNCOUNTED[Endpoint]


def test_trees(actor: dict[str, Any], make_prompts: Callable[[int], Artifact]) -> None:
    parent = make_prompts(2)
    found = changes(TreesSection(), ("trees",), {"endpoint"})
    check(actor, found, lambda recipe: plan_trees(recipe, parent, None))


def test_the_actors_section_counts_by_its_context_and_its_model(
    actor: dict[str, Any], make_prompts: Callable[[int], Artifact]
) -> None:
    parent = make_prompts(2)
    before = plan_trees(Recipe.model_validate(actor), parent, None).fingerprint

    def after(**keys: Any) -> str:
        return plan_trees(Recipe.model_validate({"actor": actor["actor"] | keys}), parent, None).fingerprint

    unseen = {"port": 9, "timeout": 1, "retries": 0, "retry_seconds": 1, "concurrency": 3, "api_key_env": "OTHER"}
    for key, value in unseen.items():
        assert after(**{key: value}) == before, key
    assert after(base_url="http://127.0.0.1:9/v1") == before
    assert after(max_model_len=2048) != before
    assert after(model="another") != before


@pytest.mark.parametrize("section", ["preference_pairs", "prm_pairs"])
def test_pairs(section: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.stairdata.forests import artifact_of, tree_of

    artifact_of(tmp_path, [tree_of([(1, 0, "a", True, 1.0, 4)], 0)])
    plans: list[BuildPlan] = []

    def stop(plan: BuildPlan, *_: Any) -> Any:
        plans.append(plan)
        return None

    monkeypatch.setattr(pairs, "build_as_told", stop)
    build = pairs.build_preference_pairs if section == "preference_pairs" else pairs.build_prm_pairs

    def planned(recipe: Recipe) -> BuildPlan:
        build(recipe, BuildOptions(root=tmp_path))
        return plans[-1]

    model = PreferencePairsSection() if section == "preference_pairs" else PrmPairsSection()
    check({}, changes(model, (section,), {"reviews"}), planned)


def test_rows_out_of_trees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.stairdata.forests import artifact_of, tree_of

    trees = artifact_of(tmp_path, [tree_of([(1, 0, "a", True, 1.0, 4)], 0)])
    plans: list[BuildPlan] = []
    monkeypatch.setattr(from_trees, "build_as_told", lambda plan, *_: plans.append(plan))

    def planned(recipe: Recipe) -> BuildPlan:
        from_trees.build_from_trees(recipe, trees, BuildOptions(root=tmp_path))
        return plans[-1]

    base: dict[str, Any] = {"structured_cot": {"from_trees": {}}}
    check(base, changes(FromTreesSection(), ("structured_cot", "from_trees")), planned)


def test_responses(
    actor: dict[str, Any], make_prompts: Callable[[int], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = make_prompts(2)
    plans: list[BuildPlan] = []
    monkeypatch.setattr(responses, "build_as_told", lambda plan, *_: plans.append(plan))

    def planned(recipe: Recipe) -> BuildPlan:
        responses.build_responses(recipe, BuildOptions(inputs=(str(parent.folder),)))
        return plans[-1]

    found = changes(ResponsesSection(), ("responses",))
    check(actor | {"responses": {"prm": "folder"}}, found, planned)


def test_teachers_and_their_judge(make_prompts: Callable[[int], Artifact]) -> None:
    parent = make_prompts(2)
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    base = {"structured_cot": {"teacher": server, "judge": server}}

    def planned(recipe: Recipe) -> BuildPlan:
        options = BuildOptions()
        return plan._plan(plan.make_panel(recipe, parent, options, plan.ASK_ONE), options)

    which = {"path", "base_url", "model", "tokenizer"}
    before = planned(Recipe.model_validate(base)).fingerprint
    for role, model in (("teacher", Teacher()), ("judge", CotJudge())):
        check(base, changes(model, ("structured_cot", role), which), planned)
        renamed = changed(base, ("structured_cot", role, "model"), "another")
        assert planned(Recipe.model_validate(renamed)).fingerprint != before
        moved = changed(base, ("structured_cot", role, "base_url"), "http://127.0.0.1:8/v1")
        assert planned(Recipe.model_validate(moved)).fingerprint == before
    check(base, changes(StructuredCotSection().gate, ("structured_cot", "gate")), planned)


def test_prompts(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", "task": "safety"}}\n')
    source = {"path": str(tmp_path / "a.jsonl")}
    base = {"prompts": {"sources": [source], "max_tokens": None}}

    def planned(recipe: Recipe) -> BuildPlan:
        return prompts._plan(prompts._given(recipe, BuildOptions(root=tmp_path)), recipe, None)

    elsewhere = {"sources", "decontaminate", "task_judge", "max_tokens", "tokenizer"}
    check(base, changes(PromptsSection(), ("prompts",), elsewhere), planned)
    before = planned(Recipe.model_validate(base)).fingerprint
    for change in changes(PromptSource(path=tmp_path / "a.jsonl"), ("source",), {"path", "hub", "like"}):
        one = {"prompts": {"sources": [source | {change.where[1]: change.value}]}}
        assert (planned(Recipe.model_validate(one)).fingerprint != before) == change.counts, change
    other_file = {"prompts": {"sources": [{"path": str(tmp_path / "b.jsonl")}]}}
    assert planned(Recipe.model_validate(other_file)).fingerprint != before
    clean = changed(base, ("prompts", "decontaminate"), [str(tmp_path / "b.jsonl")])
    assert planned(Recipe.model_validate(clean)).fingerprint != before


def test_a_key_of_another_stage_changes_nothing(actor: dict[str, Any], make_prompts: Callable[[int], Artifact]) -> None:
    parent = make_prompts(2)
    before = plan_trees(Recipe.model_validate(actor), parent, None).fingerprint
    for section in ("responses", "preference_pairs", "prm_pairs"):
        other = {"responses": {"n": 3}}.get(section, {"min_margin": 0.9})
        assert plan_trees(Recipe.model_validate(actor | {section: other}), parent, None).fingerprint == before


def test_a_new_key_counts_and_one_that_came_later_counts_where_it_is_set() -> None:
    class NewKey(JudgeSection):
        patience: int = 3

    assert "patience" in counted(NewKey())
    assert "max_model_len" not in counted(Endpoint())
    assert counted(Endpoint(max_model_len=128)) == {"max_model_len": 128}
    assert counted(Endpoint(), with_defaults=True) == {"max_model_len": 4096}
    assert "endpoint" not in counted(JudgeSection(kind="endpoint", endpoint=Endpoint(path="m")))
    assert counted(JudgeSection(kind="endpoint", endpoint=Endpoint(path="m", max_model_len=99)))["endpoint"]
