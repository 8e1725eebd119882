"""`stairdata train` on a tiny model: what a kill leaves is used, and what is finished is returned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stairdata.stages import read_full_recipe
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, begin_build
from stairdata_training.output import locked, partial_folder
from tests.stairdata.cli.conftest import Ended
from tests.stairdata.hub.conftest import pair_rows

Run = Callable[..., Ended]
STEPS = 8

# The command line with a progress bar that, at the third step, says so and waits for a line that never comes.
KILLED_AT_STEP_3 = """
import contextlib, sys
from stairdata.cli import main, train

@contextlib.contextmanager
def show_progress():
    def progress(what, step, steps, detail=""):
        if step == 3:
            print("stopped", flush=True)
            sys.stdin.read()
    yield progress

train.show_progress = show_progress
main.main()
"""


@pytest.fixture
def pairs(tmp_path: Path, tokenizer_folder: Path) -> Artifact:
    """Pairs in ./artifacts, and a tiny model to start from in ./sft."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    build = begin_build(BuildPlan("preference_pairs", "tests/1", {}), tmp_path / "artifacts")
    assert isinstance(build, Build)
    with build:
        return build.finish([pair_rows(8)])


def train_dpo(output: str, **settings: int) -> list[str]:
    settings = {"batch_size": 2, "gradient_accumulation": 1, "max_steps": STEPS, **settings}
    sets = [word for key, value in settings.items() for word in ("--set", f"dpo.{key}={value}")]
    return ["train", "dpo", "--model", "sft", "--output", output, *sets]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return found


def kill_at_step_3(folder: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-c", KILLED_AT_STEP_3, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stopped\n"
        child.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("pairs")
def test_a_killed_run_goes_on_with_another_distance_between_checkpoints(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, steps = partial_folder(tmp_path / "dpo"), []

    @contextmanager
    def show_progress() -> Iterator[Callable[..., None]]:
        def progress(_what: str, step: int, _steps: int) -> None:
            steps.append((step, sorted(path.name for path in (partial / "checkpoints").glob("checkpoint-*"))))

        yield progress

    kill_at_step_3(tmp_path, train_dpo("dpo", checkpoint_steps=2))
    assert [path.name for path in (partial / "checkpoints").iterdir()] == ["checkpoint-2"]
    monkeypatch.setattr("stairdata.cli.train.show_progress", show_progress)
    ended = run(*train_dpo("dpo", checkpoint_steps=5))
    assert ended.status == 0, ended.err
    assert [step for step, _ in steps] == [3, 4, 5, 6, 7, 8]
    assert steps[-1][1] == ["checkpoint-2", "checkpoint-5"]
    assert run(*train_dpo("straight")).status == 0
    killed, straight = record(tmp_path / "dpo"), record(tmp_path / "straight")
    assert killed["summary"]["losses"] == straight["summary"]["losses"]
    assert killed["fingerprint"] == straight["fingerprint"]


@pytest.mark.parametrize("stage", ["sft", "dpo", "prm"])
def test_a_recipe_of_the_package_is_found_by_its_name(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / stage).mkdir()  # such as the model that the stage before left
    recipe = read_full_recipe(Path(stage))
    section = getattr(recipe, stage)
    assert section.batch_size * section.gradient_accumulation == 128
    assert str(section.output).startswith("runs/")


@pytest.mark.slow
def test_what_one_way_finished_is_returned_by_the_other(run: Run, pairs: Artifact, tmp_path: Path) -> None:
    from stairdata_training import dpo
    from stairdata_training.config import DpoConfig

    def never(*_: object) -> None:
        raise AssertionError("it was trained again")

    assert run(*train_dpo("dpo", max_steps=1)).status == 0
    config = DpoConfig(batch_size=2, gradient_accumulation=1, max_steps=1, checkpoint_steps=7)
    summary = dpo.train_dpo(pairs, "sft", tmp_path / "dpo", config, on_progress=never)
    assert summary.losses == tuple(map(tuple, record(tmp_path / "dpo")["summary"]["losses"]))
    dpo.train_dpo(pairs, "sft", tmp_path / "by-python", config)
    weights = tmp_path / "by-python" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert run(*train_dpo("by-python", max_steps=1)).status == 0
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.usefixtures("pairs")
def test_a_finished_training_is_returned_before_torch_is_imported(run: Run, tmp_path: Path) -> None:
    assert run(*train_dpo("dpo", max_steps=1)).status == 0
    code = (
        "import sys\nfrom stairdata.cli.main import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *train_dpo("dpo", max_steps=1)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "dpo\nFalse\n"
    assert "dpo: 8 rows, 1 steps" in done.stderr


@pytest.mark.usefixtures("pairs")
def test_a_model_that_another_process_is_about_to_publish_is_left_to_it(run: Run, tmp_path: Path) -> None:
    partial = partial_folder(tmp_path / "dpo")
    partial.mkdir()
    (partial / "training.json").write_text("{}", encoding="utf-8")
    with locked(tmp_path / "dpo"):
        ended = run(*train_dpo("dpo", max_steps=1))
    assert (ended.status, "another process is training into" in ended.err) == (1, True)
    assert (partial / "training.json").is_file()


@pytest.mark.usefixtures("pairs")
def test_a_dry_run_says_what_the_training_would_take_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    ended = run(*train_dpo("dpo"), "--dry-run", "--json")
    assert ended.status == 0, ended.err
    facts = json.loads(ended.out)
    assert (facts["steps"], facts["lengths"]["rows"]) == (STEPS, 8)
    assert facts["parameters"] == facts["trained_parameters"] > 0
    shown = run(*train_dpo("dpo"), "--dry-run").out
    assert f"{facts['parameters']:,}, of which" in shown
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("pairs")
def test_a_model_of_other_settings_is_replaced_only_if_told(run: Run, tmp_path: Path) -> None:
    assert run(*train_dpo("dpo", max_steps=1)).status == 0
    kept = record(tmp_path / "dpo")
    ended = run(*train_dpo("dpo", max_steps=2))
    assert ended.status == 1
    assert "holds a model of another training: max_steps is '1' there and '2' here" in ended.err
    assert record(tmp_path / "dpo") == kept
    ended = run(*train_dpo("dpo", max_steps=2), "--fresh")
    assert ended.status == 0, ended.err
    assert "8 rows, " in ended.err
    assert len(record(tmp_path / "dpo")["metrics"]) >= 2


@pytest.mark.slow
@pytest.mark.usefixtures("pairs")
def test_two_processes_by_torchrun(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = ["stairdata", *train_dpo("dpo", max_steps=2), "--json"]
    ended = subprocess.run([*launcher, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["steps"] == 2
    assert record(tmp_path / "dpo")["config"]["processes"] == 2
    again = subprocess.run([*launcher, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, ended.stdout)


def test_configurations_for_accelerate(run: Run) -> None:
    for name in ("fsdp2", "zero3"):
        ended = run("train", "--accelerate-config", name)
        assert ended.status == 0
        assert Path(ended.out.strip()).read_text(encoding="utf-8").startswith("# Weights, gradients and AdamW's state")
    ended = run("train", "--accelerate-config", "fsdp")
    assert ended.status == 2
    assert "did you mean 'fsdp2'?" in ended.err
