"""Every kind that asks a model gives the same artifact on one server, on three, and where one of them dies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.generators.structured_cot.plan import TeacherOptions
from stairdata.recipe import Endpoint, Recipe
from stairdata.runs.executors.checks import _last_part, at_endpoints, roles_at_endpoints
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.executors.roles import ROLES
from stairdata.runs.options import BuildOptions
from stairdata.stages import FullRecipe, build_kind
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import ServerError, UsageError

if TYPE_CHECKING:
    from tests.conftest import StubServer

KINDS = ["responses", "structured_cot", "prompts", "evaluations", "trees/judge", "evaluations/judge", "responses/prm"]
"""Kinds of builds, with the role of the model that has several servers, unless the build is about that."""
OTHER_KINDS = ["structured_cot/judge", "prompts/twins", "evaluations/attacker"]
ROWS = 12
STUB = {
    "prompts": {"judge_text": "Task: safety"},
    "evaluations/attacker": {"judge_text": "<prompt>\nPlease?\n</prompt>"},
}
"""Options of the stub for a kind."""
ENDPOINTS = Execution(endpoints=("http://127.0.0.1:1/v1",))
ACTOR = {"base_url": "http://127.0.0.1:2/v1", "model": "actor", "tokenizer": "folder"}
BENCHMARK = {"name": "asked", "path": "q.jsonl", "columns": {"prompt": "prompt"}, "score": "refusal"}
UNEVEN = {"seconds"}
"""Columns that no two builds have alike."""
Build = Callable[..., Artifact]


@pytest.fixture
def build(
    actor_section: dict[str, Any],
    waits: list[float],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> Build:
    def make(
        name: str,
        root: str,
        urls: tuple[str, ...] = (),
        execution: Execution = HERE,
        own: dict[str, Any] | None = None,
        **options: Any,
    ) -> Artifact:
        kind, _, role = name.partition("/")
        recipe = recipe_of(name, actor_section, tmp_path)
        own = own or ({"asking": TeacherOptions(("a", "b"))} if name == "structured_cot/judge" else {})
        if urls:
            execution = Execution(role_endpoints={role: urls}) if role else Execution(endpoints=urls)
        given = BuildOptions(
            root=tmp_path / root,
            inputs=() if kind in {"prompts", "evaluations"} or "rejudge" in own else (str(make_prompts(ROWS).folder),),
            max_quarantine=1.0,
            **options,
        )
        artifact = build_kind(kind, recipe, given, execution=execution, **own)
        assert artifact is not None
        return artifact

    return make


def recipe_of(name: str, actor: dict[str, Any], folder: Path) -> FullRecipe:
    """Return a recipe in which the stub does the work of a kind."""
    source = folder / "without-task.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"Question {number}?"}) + "\n" for number in range(ROWS)))
    asked = actor | {"retries": 1, "concurrency": 4}
    evaluations = {"benchmarks": [BENCHMARK | {"path": str(source)}], "concurrency": 3}
    harmful = evaluations | {"benchmarks": [BENCHMARK | {"path": str(source), "task": "safety"}]}
    attacks = {"names": ["pap"], "attacker": asked, "pap": {"techniques": ["logical_appeal"]}}
    trees = {"iterations": 3, "samples": 2, "max_depth": 3, "concurrency": 3}
    sections: dict[str, dict[str, Any]] = {
        "responses": {"actor": asked, "responses": {"n": 2, "concurrency": 3}},
        "trees": {"actor": asked, "trees": {"iterations": 8, "samples": 3, "max_depth": 3, "concurrency": 3}},
        "structured_cot": {"structured_cot": {"teacher": asked, "judge": asked, "concurrency": 3}},
        "evaluations": {
            "actor": asked,
            "responses": {"n": 2},
            "evaluations": evaluations | {"attacks": {"names": ["none", "rot13"]}, "judge": asked | {"kind": "rubric"}},
        },
        "prompts": {"prompts": {"sources": [{"path": str(source)}], "task_judge": asked, "concurrency": 3}},
        "trees/judge": {"actor": asked, "trees": trees | {"judge": {"kind": "endpoint", "endpoint": asked}}},
        "responses/prm": {
            "actor": asked,
            "responses": {"method": "best_of_n", "n": 2, "concurrency": 3, "prm": asked},
        },
        "structured_cot/judge": {
            "structured_cot": {"teachers": {"a": asked, "b": asked | {"temperature": 0.9}}, "judge": asked}
        },
        "evaluations/attacker": {"actor": asked, "evaluations": harmful | {"attacks": attacks}},
        "prompts/twins": {
            "prompts": {
                "sources": [{"path": str(source), "task": "safety"}],
                "twins": {"teacher": asked},
                "concurrency": 3,
            }
        },
    }
    return FullRecipe.model_validate(sections.get(name) or sections[name.partition("/")[0]])


def prepare(kind: str, stubs: Sequence[StubServer]) -> None:
    """Put back what servers count, and have them say what a kind reads."""
    for stub in stubs:
        stub.reset()
        stub.control(**STUB.get(kind, {}))


def rows_of(artifact: Artifact) -> pl.DataFrame:
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect()
    return rows.drop(UNEVEN & set(rows.columns))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_server_three_and_two_that_are_left_give_the_same(
    kind: str, build: Build, stubs: list[StubServer], caplog: pytest.LogCaptureFixture
) -> None:
    urls = tuple(stub.base_url for stub in stubs)
    prepare(kind, stubs)
    one = build(kind, "one")
    requests = sum(stub.stats()["requests"] for stub in stubs)
    said: list[str] = []
    prepare(kind, stubs)
    three = build(kind, "three", urls, tell=said.append)
    assert rows_of(three).equals(rows_of(one))
    assert three.manifest.fingerprint == one.manifest.fingerprint
    assert (three.manifest.usage, three.manifest.details) == (one.manifest.usage, one.manifest.details)
    shares = [stub.stats()["requests"] for stub in stubs]
    assert kind == "responses/prm" or sum(shares) == requests  # a request for scores is of as many as wait
    assert min(shares) > 0
    table, (_, _, role) = "\n".join(said), kind.partition("/")
    assert [f"  {role}{'=' * bool(role)}{url} " in table for url in urls] == [True] * 3
    assert "what each endpoint did:" in table
    _check_that_two_are_enough(kind, one, build, stubs, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_two_that_are_left_give_the_rows_of_one(
    kind: str, build: Build, stubs: list[StubServer], caplog: pytest.LogCaptureFixture
) -> None:
    prepare(kind, stubs)
    one = build(kind, "one")
    _check_that_two_are_enough(kind, one, build, stubs, caplog)


def _check_that_two_are_enough(
    kind: str, one: Artifact, build: Build, stubs: list[StubServer], caplog: pytest.LogCaptureFixture
) -> None:
    prepare(kind, stubs)
    stubs[1].control(die_after=1)
    two = build(kind, "two", tuple(stub.base_url for stub in stubs))
    assert rows_of(two).equals(rows_of(one))
    assert two.manifest.fingerprint == one.manifest.fingerprint
    assert f"{stubs[1].base_url} no longer answers" in caplog.text
    assert not stubs[1].is_running


@pytest.mark.slow
def test_trees_are_rated_again_by_several_servers(
    build: Build, stubs: list[StubServer], caplog: pytest.LogCaptureFixture
) -> None:
    kind = "trees/judge"
    trees = build(kind, "grown")
    again = {"own": {"rejudge": str(trees.folder)}}
    one = build(kind, "one", **again)
    stubs[1].control(die_after=1)
    two = build(kind, "two", tuple(stub.base_url for stub in stubs), **again)
    assert rows_of(two).equals(rows_of(one))
    assert f"{stubs[1].base_url} no longer answers" in caplog.text


def test_a_server_that_is_slow_keeps_what_it_has_and_gets_no_more(build: Build, stubs: list[StubServer]) -> None:
    slow, fast = stubs[:2]
    slow.control(hold=1000)

    def release() -> None:
        fast.stats(requests=ROWS - 4)  # answered once so many were sent there
        slow.control(hold=0)

    threading.Thread(target=release, daemon=True).start()
    build("responses", "pulled", (slow.base_url, fast.base_url))
    shares = [stub.stats()["requests"] for stub in (slow, fast)]
    assert sum(shares) == ROWS
    assert shares[0] <= 4


# -- what can't be meant ---------------------------------------------------------------------------------------


def nothing_written(folder: Path) -> bool:
    return not folder.exists()


@pytest.mark.parametrize("kind", ["responses", "evaluations/judge"])
def test_endpoints_of_another_model_are_refused_before_anything_is_asked(
    kind: str, build: Build, stubs: list[StubServer], tmp_path: Path
) -> None:
    urls = tuple(stub.base_url for stub in stubs)
    option = f"--endpoints {kind.partition('/')[2]}".strip()

    def refused(words: str) -> None:
        with pytest.raises(ServerError, match=words):
            build(kind, "refused", urls)
        assert nothing_written(tmp_path / "refused")
        assert {stub.stats()["requests"] for stub in stubs if stub.is_running} == {0}

    stubs[2].control(model="another")
    refused(f"the server at {urls[2]} does not serve 'actor'; it serves 'another'")
    stubs[2].reset()
    stubs[0].control(root="/models/sft-1")
    stubs[2].control(root="/other/models/sft-2")
    refused(f"{option}: the model 'actor' is '/other/models/sft-2' at {urls[2]} and '/models/sft-1' at {urls[0]}")
    stubs[2].control(root="org/sft-1", tokenizer=str(another_tokenizer(stubs[0], tmp_path)))
    refused(f"{option}: {urls[2]} cuts a text into [0-9]+ tokens, .*, and {urls[0]} into [0-9]+, .*: leave one of the")
    stubs[2].stop()
    refused(f"the LLM server at {urls[2]} can't be used: .* check base_url, that the server runs")


def another_tokenizer(stub: StubServer, folder: Path) -> Path:
    """Write the stub's tokenizer without its merges, so that it cuts words into bytes."""
    assert stub.tokenizer is not None
    file = json.loads((stub.tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    file["model"]["merges"] = []
    (folder / "bytes").mkdir()
    (folder / "bytes" / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    return folder / "bytes"


def test_what_is_finished_needs_no_server(build: Build, stubs: list[StubServer]) -> None:
    urls = tuple(stub.base_url for stub in stubs[:2])
    built = build("responses", "finished", urls)
    stubs[1].stop()
    assert build("responses", "finished", urls).reference == built.reference


def test_endpoints_that_can_not_be_meant() -> None:
    url = "http://127.0.0.1:1/v1"
    with pytest.raises(UsageError, match=f"--endpoints: '{url}' is given twice; give each server once"):
        Execution(endpoints=(url, "http://127.0.0.1:2/v1", url + "/"))
    with pytest.raises(UsageError, match="--address 'head:6379' names a Ray cluster; add --executor ray"):
        Execution(address="head:6379")
    with pytest.raises(UsageError, match=f"--endpoints judge: '{url}' is given twice; give each server once"):
        Execution(endpoints=(url,), role_endpoints={"prm": (url,), "judge": (url, url + "/")})
    for actor in ({"path": "model"}, {"model": "actor"}, {"tokenizer": "folder"}):
        with pytest.raises(UsageError, match=r"--endpoints needs actor\.model and actor\.tokenizer .*no actor\.path"):
            at_endpoints(Endpoint.model_validate(actor), Execution(endpoints=(url,)), "actor")


@pytest.mark.parametrize(
    ("kind", "sections", "execution", "words"),
    [
        ("structured_cot", {"structured_cot": {"path": "written.jsonl"}}, ENDPOINTS, "go with teachers; this recipe"),
        ("prompts", {"prompts": {"sources": [{"path": "q.jsonl"}]}}, ENDPOINTS, "give prompts.task_judge, or leave"),
        (
            "evaluations",
            {"actor": ACTOR, "evaluations": {"benchmarks": [BENCHMARK], "models": [ACTOR | {"model": "other"}]}},
            ENDPOINTS,
            "the work of one model, and 2 are tested; test one in each build",
        ),
        (
            "evaluations",
            {"actor": ACTOR, "evaluations": {"benchmarks": [BENCHMARK]}},
            Execution(role_endpoints={"judge": ("http://127.0.0.1:1/v1",)}),
            "--endpoints judge: this build asks no evaluations.judge; leave these endpoints out",
        ),
        (
            "evaluations",
            {"actor": ACTOR, "evaluations": {"benchmarks": [BENCHMARK], "attacks": {"attacker": ACTOR}}},
            Execution(role_endpoints={"attacker": ("http://127.0.0.1:1/v1",)}),
            r"--endpoints attacker: this build asks no evaluations\.attacks\.attacker",
        ),
    ],
    ids=["a-file", "no-judge", "two-models", "no-judgement", "no-attack"],
)
def test_endpoints_of_nobody(
    kind: str, sections: dict[str, Any], execution: Execution, words: str, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"prompt": "Why?"}\n')
    recipe = FullRecipe.model_validate(sections)
    with pytest.raises(UsageError, match=words):
        build_kind(kind, recipe, BuildOptions(root=tmp_path / "nobody"), execution=execution)
    assert not (tmp_path / "nobody").exists()


@pytest.mark.parametrize(
    ("kind", "sections", "role", "words"),
    [
        ("trees", {"actor": ACTOR}, "judge", "this build asks no trees.judge.endpoint; leave these endpoints out"),
        ("prompts", {}, "twins", "this build asks no prompts.twins.teacher; leave"),
        ("structured_cot", {}, "judge", "this build asks no structured_cot.judge; leave"),
        ("responses", {}, "prm", "this build asks no responses.prm; leave"),
        ("responses", {"responses": {"prm": "folder"}}, "prm", "responses.prm runs in this process; leave these"),
        ("responses", {"responses": {"prm": {"path": "folder", "serve": True}}}, "prm", "no responses.prm.path"),
        (
            "structured_cot",
            {"structured_cot": {"judge": {}}},
            "judge",
            "needs structured_cot.judge.model in the recipe",
        ),
    ],
)
def test_roles_of_nobody(kind: str, sections: dict[str, Any], role: str, words: str) -> None:
    recipe = FullRecipe.model_validate(sections)
    with pytest.raises(UsageError, match=f"--endpoints {role}:? .*{words}"):
        roles_at_endpoints(recipe, kind, Execution(role_endpoints={role: ("http://127.0.0.1:1/v1",)}))


def test_each_role_is_a_key_of_the_recipe() -> None:
    """So that who has read the recipe can guess it."""
    for roles in ROLES.values():
        for role, key in roles.items():
            assert role in key.split(".")


def test_endpoints_are_of_teachers_at_one_place(make_prompts: Callable[[int], Artifact], tmp_path: Path) -> None:
    teachers = {name: {"base_url": f"http://{name}/v1", "model": name} for name in ("a", "b")}
    section = {"teachers": teachers, "teacher": teachers["a"], "judge": teachers["a"]}
    recipe = Recipe.model_validate({"structured_cot": section})
    given = BuildOptions(root=tmp_path / "two", inputs=(str(make_prompts(1).folder),))
    with pytest.raises(UsageError, match="those of --teachers are at several"):
        build_structured_cot(recipe, given, TeacherOptions(("a", "b")), ENDPOINTS)
    with pytest.raises(UsageError, match="--batch asks the Batch API"):
        build_structured_cot(recipe, given, TeacherOptions(batch="submit"), ENDPOINTS)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/data/llama", "/mnt/models/llama/"),
        ("org/llama", "/data/llama"),
        ("HuggingFaceTB/SmolLM2-135M", "/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/0123"),
        ("org/a--b", "/hub/models--org--a--b/snapshots/0123"),
    ],
)
def test_places_of_one_model_are_taken_for_one(one: str, other: str) -> None:
    assert _last_part(one) == _last_part(other)


@pytest.mark.parametrize(
    "other", ["org/llama-2", "/data/llama/snapshots/0123", "/hub/models--org--lama/snapshots/0123", ""]
)
def test_other_models_are_not(other: str) -> None:
    assert _last_part("org/llama") != _last_part(other)
