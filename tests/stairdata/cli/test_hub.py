"""push, pull, list --repo and show --lineage as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from tests.stairdata.hub.conftest import pair_rows

if TYPE_CHECKING:
    from tests.conftest import HubServer
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]
REPO = "org/prompts"
PROGRAM = str(Path(sys.executable).with_name("stairdata"))


@pytest.fixture
def build(run: Run, tmp_path: Path) -> Callable[..., str]:
    """Build prompts and return their reference."""

    def built(*prompts: str, license: str = "mit") -> str:
        rows = [{"prompt": prompt, "task": "safety"} for prompt in prompts]
        path = tmp_path / "q.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = f"prompts.sources=[{{path: q.jsonl, license: {license}}}]"
        ended = run("build", "prompts", "--set", source)
        assert ended.status == 0, ended.err
        return ended.out.strip()

    return built


@pytest.mark.slow
def test_push_list_show_and_pull(hub: HubServer, run: Run, build: Callable[..., str], tmp_path: Path) -> None:
    build("one", "two")
    dry = run("push", "prompts", "--repo", REPO, "--dry-run")
    assert (dry.status, hub.has(REPO)) == (0, False)
    for words in ("not there -> private, gated manual", "v1.0.0 (new)", "data/train-00000-of-00001.parquet", "mit"):
        assert words in dry.out
    assert run("push", "prompts", "--repo", REPO, "--dry-run", "--json").out.count("\n") == 1
    ended = run("push", "prompts", "--repo", REPO)
    assert (ended.status, ended.out) == (0, f"{REPO}@v1.0.0\n"), ended.err
    again = run("push", "prompts@1.0.0", "--repo", REPO)
    assert (again.status, "already exists, with the same content" in again.err) == (0, True)
    build("one", "two", "three")
    assert run("push", "prompts", "--repo", REPO).status == 0
    listed = run("list", "--repo", REPO)
    for words in ("v1.1.0", "v1.0.0", "rows 2 -> 3", "prompts", "mit"):
        assert words in listed.out
    facts = json.loads(run("list", "--repo", REPO, "--json").out)
    assert [release["tag"] for release in facts["releases"]] == ["v1.1.0", "v1.0.0"]
    assert facts["private"]
    pulled = run("pull", f"{REPO}@v1.0.0", "--root", "there")
    assert (pulled.status, pulled.out) == (0, "prompts@1.0.0\n"), pulled.err
    assert run("validate", "prompts@1.0.0", "--root", "there").status == 0
    assert run("validate", f"{REPO}@v1.1.0").out == "prompts@1.1.0 is valid: 3 rows\n"
    shown = run("show", "prompts", "--root", "there", "--lineage")
    assert "prompts@1.0.0  2 rows" in shown.out
    assert f"on the Hub as {REPO}" in shown.out
    assert json.loads(run("show", f"{REPO}@v1.0.0", "--lineage", "--json").out)["rows"] == 2
    assert run("diff", f"{REPO}@v1.0.0", f"{REPO}@v1.1.0").status == 0
    assert run("export", f"{REPO}@v1.0.0", "--to", "thu-ml", "out.json").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["push", "prompts", "--repo", "nothing"], 2, "'nothing' is not a repository name; write --repo org/name"),
        (["push", "prompts", "--repo", REPO, "--gated", "yes"], 2, "--gated 'yes': write one of manual, auto, no"),
        (["push", "prompts", "--repo", REPO, "--config", "../x"], 2, "'../x' can't be a config"),
        (["push", "prompts", "--repo", REPO, "--license", "My own"], 2, "is not a licence identifier"),
        (["push", "trees", "--repo", REPO], 1, "no complete trees under artifacts"),
        (["push", "prompts"], 2, "Missing option '--repo'"),
        (["push", "prompts", "--repo", "other/prompts"], 1, "you don't have the rights to create"),
        (["pull", "prompts"], 2, "'prompts' is not a dataset on the Hub; write org/name"),
        (["pull", "org/none"], 1, "no dataset org/none on the Hub for this token"),
        (["list", "--repo", "org/none"], 1, "no dataset org/none on the Hub for this token"),
        (["show", "org/none@v1.0.0"], 1, "no dataset org/none on the Hub for this token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message(
    arguments: list[str], status: int, words: str, hub: HubServer, run: Run, build: Callable[..., str]
) -> None:
    build("one")
    ended = run(*arguments)
    assert ended.status == status, ended.err
    assert words.lower() in ended.err.lower()
    assert "Traceback" not in ended.err
    assert "hf_test_write" not in ended.err


def test_without_matplotlib_it_says_what_to_install(
    hub: HubServer, run: Run, build: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build("one")
    monkeypatch.setattr("stairdata.hub.plots.available", lambda: False)
    ended = run("push", "prompts", "--repo", REPO)
    assert ended.status == 0
    assert "pip install 'stairdata[publish]'" in ended.err


def in_a_process(hub: HubServer, folder: Path, *arguments: str, **faults: str) -> int:
    """Run a command in a process of its own, which the Hub kills at some request; return how it ended."""
    command = [PROGRAM, *arguments]
    process = subprocess.Popen(command, cwd=folder, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    hub.control(faults=faults, kill_pid=process.pid)
    _, said = process.communicate(timeout=120)
    assert process.returncode in {0, -9}, said
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "kill_late"])
def test_a_kill_at_any_request_is_mended_by_the_next_run(
    fault: str, hub: HubServer, run: Run, build: Callable[..., str], tmp_path: Path
) -> None:
    build("one", "two")
    push = ("push", "prompts", "--repo", REPO)
    assert in_a_process(hub, tmp_path, *push) == 0
    count = len(hub.requests)
    for index in range(count):
        hub.control(forget=REPO, recount=True)
        code = in_a_process(hub, tmp_path, *push, **{str(index): fault})
        assert code == -9 or index >= len(hub.requests)  # Xet sends less when it knows the content
        if hub.has(REPO):
            assert hub.repo(REPO)["private"]
        hub.control(recount=True)
        ended = run(*push)
        assert ended.status == 0, ended.err
        there = hub.repo(REPO)
        assert (there["private"], there["gated"], list(there["tags"])) == (True, "manual", ["v1.0.0"])
        assert there["commits"] == ["Release v1.0.0", "initial commit"]


@pytest.mark.slow
def test_a_pull_killed_at_any_request_is_finished_by_the_next_one(
    hub: HubServer, run: Run, build: Callable[..., str], tmp_path: Path
) -> None:
    build("one", "two")
    assert run("push", "prompts", "--repo", REPO).status == 0
    hub.control(recount=True)
    assert run("pull", REPO, "--root", "clean").status == 0
    for index in range(len(hub.requests)):
        hub.control(recount=True)
        root = f"root-{index}"
        assert in_a_process(hub, tmp_path, "pull", REPO, "--root", root, **{str(index): "kill_late"}) == -9
        assert not (tmp_path / root / "prompts").exists()
        hub.control(recount=True)
        assert run("pull", REPO, "--root", root).status == 0
        assert run("validate", "prompts", "--root", root).status == 0
        assert [path.name for path in (tmp_path / root).iterdir()] == ["prompts"]


@pytest.mark.slow
def test_eight_processes_at_once(hub: HubServer, build: Callable[..., str], tmp_path: Path) -> None:
    """Four configs of two versions each, every push a process of its own."""
    for texts in (("one",), ("one", "two")):
        build(*texts)
    processes = [
        subprocess.Popen(
            [PROGRAM, "push", f"prompts@1.{minor}.0", "--repo", REPO, "--config", config],
            cwd=tmp_path,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for config in "abcd"
        for minor in (0, 1)
    ]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0] * 8, ends
    there = hub.repo(REPO)
    assert sorted(there["tags"]) == sorted(f"{config}-v1.{minor}.0" for config in "abcd" for minor in (0, 1))
    assert list(there["branches"]) == ["main"]


@pytest.mark.slow
def test_training_on_a_pulled_set(hub: HubServer, run: Run, tmp_path: Path, tokenizer_folder: Path) -> None:
    """Step-DPO of a tiny model on pairs by their Hub reference."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from stairdata_schemas.building import Build, BuildPlan, begin_build

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    (tmp_path / "sft" / "training.json").write_text("{}", encoding="utf-8")
    build = begin_build(BuildPlan("preference_pairs", "tests/1", {}), tmp_path / "made")
    assert isinstance(build, Build)
    with build:
        build.finish([pair_rows(8)])
    assert run("push", "preference-pairs", "--repo", "org/pairs", "--root", "made").status == 0
    ended = run(
        "train", "dpo", "--input", "org/pairs@v1.0.0", "--model", "sft", "--output", "dpo",
        "--set", "dpo.max_steps=2", "--set", "dpo.batch_size=2", "--set", "dpo.gradient_accumulation=1",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert (tmp_path / "dpo" / "model.safetensors").is_file()
    assert not (tmp_path / "artifacts" / "preference_pairs").exists()


def test_no_views_publishes_the_rows_alone(hub: HubServer, run: Run, tmp_path: Path) -> None:
    from stairdata_schemas.building import Build, BuildPlan, begin_build

    ends = {"chosen_is_terminal": True, "rejected_is_terminal": True}
    build = begin_build(BuildPlan("preference_pairs", "tests/1", {}), tmp_path / "artifacts")
    assert isinstance(build, Build)
    with build:
        build.finish([pair_rows(2).with_columns(**{name: pl.lit(value) for name, value in ends.items()})])
    pushed = ("push", "preference-pairs", "--repo", "org/pairs", "--dry-run", "--json")
    for options, folders in (((), {"data", "views"}), (("--no-views",), {"data"})):
        planned = json.loads(run(*pushed, *options).out)["changes"]
        assert {change["path"].partition("/")[0] for change in planned if "parquet" in change["path"]} == folders


def test_a_model_folder_is_pushed_as_a_model(hub: HubServer, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "dpo-1"
    folder.mkdir(parents=True)
    texts = {"config.json": "{}", "README.md": "---\nlicense: unknown\n---\n\n# A model\n"}
    texts["training.json"] = json.dumps({"fingerprint": "ab" * 32})
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    pushed, tag = ("push", "runs/dpo-1", "--repo", "org/actor"), "training-abababababab"
    dry = run(*pushed, "--dry-run")
    assert (dry.status, hub.has("org/actor")) == (0, False), dry.err
    for words in ("not there -> private, gated no", f"{tag} (new)", "model.safetensors"):
        assert words in dry.out
    assert json.loads(run(*pushed, "--dry-run", "--json").out)["tag"] == tag
    ended = run(*pushed)
    assert (ended.status, ended.out) == (0, f"org/actor@{tag}\n"), ended.err
    assert "already exists, with the same content" in run(*pushed).err
    wrong = run(*pushed, "--config", "actors")
    assert (wrong.status, "--config, --default and --no-views are for artifacts" in wrong.err) == (2, True)
    (folder / "training.json").unlink()
    refused = run(*pushed)
    assert (refused.status, "`stairdata train` did not write it" in refused.err) == (1, True)
