"""Trees against the stub server: whole, the same at any concurrency, and none lost to faults or kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import yaml

from stairdata.generators import runner
from stairdata.generators.options import BuildOptions
from stairdata.generators.trees import build_trees
from stairdata.llm.client import DEAD_AFTER
from stairdata.recipe import Recipe
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BuildError, QuarantineError, ServerError
from stairdata_schemas.files import Journal

if TYPE_CHECKING:
    from tests.conftest import StubServer

SMALL = {"iterations": 8, "samples": 3, "max_depth": 3}
UNEVEN = ["requests", "prompt_tokens", "completion_tokens", "seconds"]  # of one tree, from one run to the next
# torch is not needed here, and takes seconds to import
CLI = [sys.executable, "-c", "import sys; sys.modules['torch'] = None; from stairdata.cli.main import main; main()"]
Build = Callable[..., Artifact]


@pytest.fixture
def build(
    actor_section: dict[str, Any],
    stub_llm: StubServer,
    waits: list[float],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> Build:
    """Grow trees from some prompts, into a folder of their own."""

    def grow(
        count: int,
        *,
        root: str = "trees",
        actor: dict[str, Any] | None = None,
        limit: int | None = None,
        max_quarantine: float = 0.0,
        seed: int = 42,
        **section: Any,
    ) -> Artifact:
        prompts = make_prompts(count)
        whole = {"retries": 3, **actor_section, "base_url": stub_llm.base_url, **(actor or {})}
        recipe = Recipe.model_validate({"seed": seed, "actor": whole, "trees": {**SMALL, **section}})
        options = BuildOptions(
            root=tmp_path / root, inputs=(str(prompts.folder),), limit=limit, max_quarantine=max_quarantine
        )
        return build_trees(recipe, options)

    return grow


def trees_of(artifact: Artifact) -> pl.DataFrame:
    return artifact.scan().collect()


def refused_of(folder: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(folder / "quarantine" / "*.parquet").to_dicts()


def test_trees_are_whole(build: Build, stub_llm: StubServer) -> None:
    artifact = build(4)
    assert validate_artifact(artifact) == []
    rows = trees_of(artifact).to_dicts()
    assert len(rows) == 4
    for row in rows:
        assert (row["actor"], row["round"], row["iterations"], row["seed"]) == ("actor", 1, 8, 42)
        root, *others = row["nodes"]
        assert root["tokens"] > 0
        assert root["visits"] >= 8
        assert all(node["visits"] > 0 for node in others if not any(o["parent_id"] == node["node_id"] for o in others))
        assert not any("<|im_end|>" in node["step"] for node in row["nodes"])
        for node in row["nodes"]:
            assert node["is_terminal"] == (node["reward"] is not None)
            assert not (node["is_terminal"] and node["rollouts"])
    assert artifact.manifest.usage.requests == stub_llm.stats()["requests"] == sum(row["requests"] for row in rows)
    assert artifact.manifest.outcomes == {"ok": 4}
    assert any("cut at max_tokens is dropped" in note for note in artifact.manifest.notes)
    values = {round(node["value_sum"] / node["visits"], 3) for row in rows for node in row["nodes"]}
    assert len(values) > 5, "the stub's trees have something to choose between"


@pytest.mark.parametrize("fused", [True, False])
def test_concurrency_does_not_change_a_tree(build: Build, stub_llm: StubServer, *, fused: bool) -> None:
    stub_llm.control(delay=0.001)
    one = build(6, root="one", concurrency=1, fused=fused)
    many = build(6, root="many", concurrency=16, fused=fused)
    assert trees_of(one).drop(UNEVEN).equals(trees_of(many).drop(UNEVEN))
    assert one.manifest.fingerprint == many.manifest.fingerprint
    assert stub_llm.stats()["most_in_flight"] > 3


def test_a_server_that_cuts_stop_strings_off_gives_the_same_trees(build: Build, stub_llm: StubServer) -> None:
    whole = trees_of(build(3, root="vllm", judge={"kind": "reference"}))
    stub_llm.control(knows_stop_option=False)
    assert trees_of(build(3, root="other", judge={"kind": "reference"})).drop(UNEVEN).equals(whole.drop(UNEVEN))


def test_a_fused_expansion_saves_requests(build: Build, stub_llm: StubServer) -> None:
    fused = build(3, root="fused", judge={"kind": "reference"}, iterations=20)
    plain = build(3, root="plain", judge={"kind": "reference"}, iterations=20, fused=False)
    assert validate_artifact(plain) == []
    assert fused.manifest.usage.requests < 0.8 * plain.manifest.usage.requests
    assert fused.manifest.fingerprint != plain.manifest.fingerprint
    assert stub_llm.last()["body"]["n"] in {1, 3}


@pytest.mark.parametrize("fused", [True, False])
def test_only_the_end_of_an_answer_is_terminal(build: Build, stub_llm: StubServer, *, fused: bool) -> None:
    """A model may end its turn after a closed step: the same step of another sample goes on, so it isn't terminal."""
    stub_llm.control(abrupt=0.3)
    for row in trees_of(build(4, iterations=20, fused=fused)).iter_rows(named=True):
        for node in row["nodes"]:
            assert not (node["is_terminal"] and node["step"].endswith("<|/Reasoning_step|>"))


@pytest.mark.parametrize("fused", [True, False])
def test_steps_and_rollouts_cut_at_their_limits(build: Build, *, fused: bool) -> None:
    artifact = build(3, root="steps", max_tokens=5, fused=fused)
    assert {len(row["nodes"]) for row in trees_of(artifact).iter_rows(named=True)} == {1}, "every step is cut"
    assert artifact.manifest.details["cut_steps"] > 0
    artifact = build(3, root="rollouts", rollout_tokens=3, fused=fused)
    assert artifact.manifest.rows == 3
    assert validate_artifact(artifact) == []


def test_the_context_of_the_model_is_kept_and_decides_rows(build: Build, stub_llm: StubServer) -> None:
    """Where prompt and answer don't fit together the answer is cut: another context is another artifact."""
    whole = build(2, root="trees")
    prompt_tokens = max(row["nodes"][0]["tokens"] for row in trees_of(whole).iter_rows(named=True))
    short = build(2, root="trees", actor={"max_model_len": prompt_tokens + 20})
    assert short.reference == "trees@1.1.0"
    assert not trees_of(short).drop(UNEVEN).equals(trees_of(whole).drop(UNEVEN))


@pytest.mark.parametrize("kind", ["self", "rule", "reference", "endpoint"])
def test_every_judge(kind: str, build: Build, stub_llm: StubServer) -> None:
    judge: dict[str, Any] = {"kind": kind}
    if kind == "endpoint":
        judge["endpoint"] = {"base_url": stub_llm.base_url, "model": "actor"}
    artifact = build(2, judge=judge)
    assert validate_artifact(artifact) == []
    asked = stub_llm.stats()["paths"].get("/v1/chat/completions", 0)
    assert (asked == 0) == (kind == "reference")
    assert [model.role for model in artifact.manifest.models] == ["actor", "judge"][: 1 + (kind == "endpoint")]


def test_the_cache_judges_equal_answers_of_a_tree_once(build: Build, stub_llm: StubServer) -> None:
    build(2, root="cached")
    cached = stub_llm.stats()["paths"]["/v1/chat/completions"]
    stub_llm.reset()
    artifact = build(2, root="plain", judge={"kind": "self", "cache": False})
    assert stub_llm.stats()["paths"]["/v1/chat/completions"] >= cached
    assert artifact.manifest.usage.requests == stub_llm.stats()["requests"]
    assert not any("judged once" in note for note in artifact.manifest.notes)


def test_several_trees_a_prompt_differ(build: Build) -> None:
    rows = trees_of(build(2, trees_per_prompt=3))
    assert rows["tree_id"].n_unique() == 6
    assert rows["prompt_id"].n_unique() == 2
    assert rows["nodes"].n_unique() == 6


def test_the_seed_decides_and_limit_stops(build: Build) -> None:
    first = build(3, root="first", limit=2)
    second = build(3, root="second", limit=2, seed=43)
    assert (first.manifest.rows, second.manifest.rows) == (2, 2)
    assert not set(trees_of(first)["tree_id"]) & set(trees_of(second)["tree_id"])


def test_what_cannot_change_rows_finds_the_finished_artifact(build: Build, stub_llm: StubServer) -> None:
    first = build(2)
    asked = stub_llm.stats()["requests"]
    assert build(2, concurrency=2, actor={"concurrency": 2, "timeout": 5, "retries": 0}) == first
    assert stub_llm.stats()["requests"] == asked
    assert build(2, c=2.0).reference == "trees@1.1.0"


@pytest.mark.parametrize(
    "shares",
    [
        {"error": 0.15, "drop": 0.05, "rate_limit": 0.05, "broken": 0.03},
        {"error": 0.05, "drop": 0.02, "empty": 0.05, "cut": 0.05, "hang": 0.01},
        {"error": 0.55},
    ],
    ids=["as in the issue", "bad content", "every second"],
)
def test_faults_lose_no_prompt(shares: dict[str, float], build: Build, stub_llm: StubServer) -> None:
    stub_llm.control(faults=shares)
    artifact = build(12, actor={"retries": 4, "timeout": 0.5}, max_quarantine=1.0)
    kept = trees_of(artifact)["prompt"].to_list()
    refused = refused_of(artifact.folder) if artifact.manifest.quarantine else []
    numbers = [int(prompt.split()[1].rstrip(":")) for prompt in kept]
    assert sorted(numbers + [row["row"] for row in refused]) == list(range(12))
    assert validate_artifact(artifact) == []
    for row in refused:
        assert len(json.loads(row["raw"])["outcomes"]) in {1, 5}
    assert set(stub_llm.stats()["faults"]) == set(shares)


def test_faults_that_pass_do_not_change_a_tree(build: Build, stub_llm: StubServer) -> None:
    sound = trees_of(build(3, root="sound"))
    stub_llm.control(faults={"error": 0.15, "drop": 0.05, "rate_limit": 0.05, "broken": 0.03})
    assert trees_of(build(3, root="faulty", actor={"retries": 9})).drop(UNEVEN).equals(sound.drop(UNEVEN))


def test_a_tree_that_failed_is_quarantined_and_grown_by_the_next_run(build: Build, stub_llm: StubServer) -> None:
    stub_llm.control(script=[{"status": 400, "text": '{"error": {"message": "too long\\u001b[31m"}}'}])
    with pytest.raises(QuarantineError, match=r"1 of 4 rows were refused \(invalid_request 1\)"):
        build(4)
    stub_llm.reset()
    artifact = build(4)
    assert (artifact.manifest.rows, artifact.manifest.quarantine) == (4, {})


def test_an_unreadable_judge_is_quarantined_with_its_words(build: Build, stub_llm: StubServer, tmp_path: Path) -> None:
    stub_llm.control(judge_text="I am not a judge.")
    with pytest.raises(BuildError, match="judge_failure 2"):
        build(2)
    (refused, _) = refused_of(tmp_path / "trees" / "trees" / "1.0.0")
    assert "I am not a judge." in refused["raw"]


def test_a_server_that_dies_is_told_once_and_the_build_goes_on_later(build: Build, stub_llm: StubServer) -> None:
    whole = trees_of(build(5, root="undisturbed"))
    undisturbed = stub_llm.stats()["requests"]
    stub_llm.reset()
    stub_llm.control(die_after=undisturbed // 2)
    with pytest.raises(ServerError, match="finished work is kept: start the server and run the same command again"):
        build(5, concurrency=5, actor={"retries": 1})
    stub_llm.wait()
    stub_llm.start()
    artifact = build(5, concurrency=5)
    assert trees_of(artifact).drop(UNEVEN).equals(whole.drop(UNEVEN))
    assert stub_llm.stats()["requests"] <= undisturbed - undisturbed // 2 + 5


@pytest.mark.parametrize("visit_all_leaves", [True, False], ids=["in a batch", "alone"])
def test_a_server_that_dies_is_not_taken_for_a_tree_that_failed(
    build: Build, stub_llm: StubServer, *, visit_all_leaves: bool
) -> None:
    """A finished artifact is immutable: a prompt must not be lost to it because the server went."""
    section: dict[str, Any] = {"samples": 6, "iterations": 4, "judge": {"kind": "reference"}, "fused": False}
    build(1, root="without", **section, visit_all_leaves=False)
    before_the_batch = stub_llm.stats()["requests"]
    stub_llm.reset()
    stub_llm.control(die_after=before_the_batch - (0 if visit_all_leaves else 1))
    with pytest.raises(ServerError, match="run the same command again"):
        build(1, **section, visit_all_leaves=visit_all_leaves, actor={"retries": 0}, max_quarantine=1.0)
    stub_llm.wait()


def test_a_kill_between_a_finished_tree_and_its_row_costs_no_request(
    build: Build, stub_llm: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree's own journal goes only when its row stands in the journal of rows."""

    class Killed(BaseException):
        pass

    def die(self: Journal, record: dict[str, Any], *, durable: bool = False) -> None:
        if durable:
            raise Killed
        plain(self, record)

    plain = Journal.append
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", die)
        with pytest.raises(Killed):
            build(1)
    stub_llm.reset()
    assert build(1).manifest.rows == 1
    assert stub_llm.stats()["requests"] == 0


def test_an_answered_request_is_not_sent_again(build: Build, stub_llm: StubServer) -> None:
    """A rating is two requests; the first one's answer is kept when the second fails."""
    build(1, root="undisturbed")
    undisturbed = stub_llm.stats()["requests"]
    stub_llm.reset()
    stub_llm.control(script=[{}, {}, {"status": 400}])  # the root's rollout, its helpfulness, its safety
    with pytest.raises(BuildError, match="invalid_request 1"):
        build(1)
    stub_llm.reset()
    build(1)
    assert stub_llm.stats()["requests"] == undisturbed - 2


@pytest.fixture
def command(
    build: Build, actor_section: dict[str, Any], make_prompts: Callable[[int], Artifact], tmp_path: Path
) -> Callable[..., list[str]]:
    """The command line that grows five trees, three at a time."""

    def make(root: str, judge: str = "self") -> list[str]:
        recipe = tmp_path / f"{root}.yaml"
        trees = {**SMALL, "concurrency": 3, "judge": {"kind": judge}}
        recipe.write_text(yaml.safe_dump({"actor": {**actor_section, "concurrency": 4}, "trees": trees}))
        prompts = make_prompts(5).folder
        where = ["--recipe", str(recipe), "--root", str(tmp_path / root), "--input", str(prompts)]
        return [*CLI, "build", "trees", *where]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("judge", "share"), [("reference", 0.0), ("reference", 0.5), ("self", 0.9)])
def test_a_killed_build_goes_on_where_it_stood(
    judge: str, share: float, build: Build, stub_llm: StubServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    whole = trees_of(build(5, root="undisturbed", judge={"kind": judge}))
    undisturbed = stub_llm.stats()["requests"]
    stub_llm.reset()
    killed = subprocess.Popen(command("killed", judge), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stub_llm.control(kill_pid=killed.pid, kill_after=max(1, int(share * undisturbed)), delay=0.002)
    assert killed.wait(timeout=120) == -signal.SIGKILL
    stub_llm.control(delay=0.0)
    folder = tmp_path / "killed" / "trees" / "1.0.0"
    assert not (folder / "manifest.json").exists()
    finished = subprocess.run(command("killed", judge), capture_output=True, text=True, timeout=120, check=True)
    assert finished.stdout == "trees@1.0.0\n"
    rows = pl.read_parquet(folder / "data" / "*.parquet")
    assert rows.drop(UNEVEN).equals(whole.drop(UNEVEN))
    stats = stub_llm.stats()
    assert stats["requests"] <= undisturbed + 4, "at most as many are lost as may be in flight"
    assert stats["distinct"] == undisturbed, "a request that is sent again has its old seed"
    assert not (folder / ".build").exists()


@pytest.mark.slow
def test_an_interrupted_build_ends_quietly_with_130(stub_llm: StubServer, command: Callable[..., list[str]]) -> None:
    stub_llm.control(script=[{}] * 5 + [{"fault": "hang"}] * 99)
    process = subprocess.Popen(command("ended"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stub_llm.stats(hanging=2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err


def test_a_build_with_all_its_rows_needs_no_server(
    build: Build, make_prompts: Callable[[int], Artifact], stub_llm: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its last row and its manifest, it is finished without starting a model again."""

    def die(*_: Any) -> None:
        raise OSError("killed")

    make_prompts(3)  # an artifact of its own, finished before the fault
    with monkeypatch.context() as patch:
        patch.setattr("stairdata_schemas.building.ShardWriter.close", die)
        with pytest.raises(OSError, match="killed"):
            build(3)
    stub_llm.stop()
    artifact = build(3)
    assert artifact.manifest.rows == 3
    assert artifact.manifest.usage.requests > 0


def test_a_unit_is_run_once_and_in_order(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = runner.run_units

    def watched(*arguments: Any) -> Any:
        build_, units, open_work, *rest = arguments

        @asynccontextmanager
        async def open_noted() -> AsyncIterator[Any]:
            async with open_work() as opened:

                async def noted(unit: Any) -> Any:
                    seen.append(unit.key)
                    return await opened.work(unit)

                yield opened._replace(work=noted)

        return original(build_, units, open_noted, *rest)

    monkeypatch.setattr("stairdata.generators.trees.run_units", watched)
    artifact = build(5, concurrency=2, iterations=2)
    assert seen == trees_of(artifact)["tree_id"].to_list()


def test_the_server_counts_as_gone_after_some_failures_in_a_row() -> None:
    assert DEAD_AFTER == 3
