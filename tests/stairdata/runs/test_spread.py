"""Every kind that asks a model gives the same artifact on one server, on three, and where one of them dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata.recipe import Endpoint
from stairdata.runs.executors.checks import at_endpoints
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.options import BuildOptions
from stairdata.stages import FullRecipe, build_kind
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import ServerError, UsageError

if TYPE_CHECKING:
    from tests.conftest import StubServer

KINDS = ["responses"]
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
    def make(kind: str, root: str, urls: tuple[str, ...] = (), execution: Execution = HERE, **options: Any) -> Artifact:
        recipe = recipe_of(kind, actor_section, tmp_path)
        given = BuildOptions(
            root=tmp_path / root,
            inputs=() if kind == "prompts" else (str(make_prompts(24).folder),),
            max_quarantine=1.0,
            **options,
        )
        artifact = build_kind(kind, recipe, given, execution=Execution(endpoints=urls) if urls else execution)
        assert artifact is not None
        return artifact

    return make


def recipe_of(kind: str, actor: dict[str, Any], folder: Path) -> FullRecipe:
    """Return a recipe in which the stub does the work of a kind."""
    asked = actor | {"retries": 1, "concurrency": 4}
    sections: dict[str, dict[str, Any]] = {
        "responses": {"actor": asked, "responses": {"n": 2, "concurrency": 3}},
    }
    return FullRecipe.model_validate(sections[kind])


def rows_of(artifact: Artifact) -> pl.DataFrame:
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect()
    return rows.drop(UNEVEN & set(rows.columns))


@pytest.mark.parametrize("kind", KINDS)
def test_one_server_three_and_two_that_are_left_give_the_same(
    kind: str, build: Build, stubs: list[StubServer], caplog: pytest.LogCaptureFixture
) -> None:
    urls = tuple(stub.base_url for stub in stubs)
    one = build(kind, "one")
    requests = stubs[0].stats()["requests"]
    said: list[str] = []
    for stub in stubs:
        stub.reset()
    three = build(kind, "three", urls, tell=said.append)
    assert rows_of(three).equals(rows_of(one))
    assert three.manifest.fingerprint == one.manifest.fingerprint
    assert (three.manifest.usage, three.manifest.details) == (one.manifest.usage, one.manifest.details)
    shares = [stub.stats()["requests"] for stub in stubs]
    assert sum(shares) == requests
    assert min(shares) > 0
    table = "\n".join(said)
    assert [f"{url} " in table for url in urls] == [True] * 3
    assert "what each endpoint did:" in table
    for stub in stubs:
        stub.reset()
    stubs[1].control(die_after=3)
    two = build(kind, "two", urls)
    assert rows_of(two).equals(rows_of(one))
    assert f"{urls[1]} no longer answers" in caplog.text
    assert not stubs[1].is_running


def test_a_slow_server_gets_less(build: Build, stubs: list[StubServer]) -> None:
    stubs[0].control(delay=0.2)
    stubs[1].control(delay=0.05)
    build("responses", "pulled", tuple(stub.base_url for stub in stubs[:2]))
    slow, fast = (stub.stats()["requests"] for stub in stubs[:2])
    assert slow + fast == 24
    assert slow < fast


# -- what can't be meant ---------------------------------------------------------------------------------------


def nothing_written(folder: Path) -> bool:
    return not folder.exists()


def test_endpoints_of_another_model_are_refused_before_anything_is_asked(
    build: Build, stubs: list[StubServer], tmp_path: Path
) -> None:
    urls = tuple(stub.base_url for stub in stubs)

    def refused(words: str) -> None:
        with pytest.raises(ServerError, match=words):
            build("responses", "refused", urls)
        assert nothing_written(tmp_path / "refused")
        assert {stub.stats()["requests"] for stub in stubs if stub.is_running} == {0}

    stubs[2].control(model="another")
    refused(f"the server at {urls[2]} does not serve 'actor'; it serves 'another'")
    stubs[2].reset()
    stubs[0].control(root="/models/sft-1")
    stubs[2].control(root="/other/models/sft-2")
    refused(f"the model 'actor' is '/other/models/sft-2' at {urls[2]} and '/models/sft-1' at {urls[0]}")
    stubs[2].control(root="org/sft-1", tokenizer=str(another_tokenizer(stubs[0], tmp_path)))
    refused(f"{urls[2]} cuts a text into [0-9]+ tokens, .*, and {urls[0]} into [0-9]+, .*: leave one of the two out")
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
    for actor in ({"path": "model"}, {"model": "actor"}, {"tokenizer": "folder"}):
        with pytest.raises(UsageError, match=r"--endpoints needs actor\.model and actor\.tokenizer .*no actor\.path"):
            at_endpoints(Endpoint.model_validate(actor), Execution(endpoints=(url,)), "actor")
