"""Two processes on a CPU, each with half of every weight, train like one that has all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from stairdata.llm.vllm_server import ManagedServer, ServerOptions, vllm_missing
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train
from tests.training.conftest import pair_row, sft_row, tiny_model
from tests.training.sharded.child import CONFIGS, ENVIRONMENT, METHODS

Job = dict[str, Any]
CONFIG = {
    "epochs": 2, "learning_rate": 3e-3, "max_length": 400, "precision": "fp32", "checkpoint_steps": 3,
    "save_dtype": "float32",
}  # fmt: skip
FULL = {"sft": "chatml", "dpo": "chatml", "prm": "llama3"}  # chatml's model ties head and embeddings
ADAPTERS = {"sft-lora": "chatml", "dpo-lora": "llama3", "prm-lora": "llama3"}


def job(name: str, starts: dict[str, dict[str, Path]], folder: Path, *, stop: int | None = None, **split: int) -> Job:
    method = name.partition("-")[0]
    row = sft_row if method == "sft" else pair_row
    return {
        "method": method,
        "rows": [row(number) for number in range(15)],  # so that a step is filled up
        "model": str(starts[method][(FULL | ADAPTERS)[name]]),
        "output": str(folder / (name if stop is None else f"{name}-killed")),
        "config": CONFIG | split | {"lora": {"rank": 4} if "lora" in name else None},
        "stop": stop,
    }


def trained(folder: Path, groups: list[list[Job]]) -> list[list[int]]:
    """Run groups of trainings, each in two new processes under FSDP; returns how the processes ended."""
    (folder / "jobs.json").write_text(json.dumps(groups), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).parent / "child.py"), "jobs.json", "statuses.json"]
    with (folder / "log").open("wb") as log:
        subprocess.run(
            command, cwd=folder, env=os.environ | ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, timeout=500,
            check=False,
        )  # fmt: skip
    found: list[list[int]] = json.loads((folder / "statuses.json").read_text(encoding="utf-8"))
    return found


def record(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "training.json").read_text(encoding="utf-8"))
    return found


def losses(output: Path) -> list[float]:
    return [loss for _, loss in record(output)["summary"]["losses"]]


@pytest.fixture(scope="module")
def sharded(starts: dict[str, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that two processes trained under FSDP, and of one training that was killed and went on."""
    folder = tmp_path_factory.mktemp("sharded")
    split = {"batch_size": 1, "gradient_accumulation": 2}
    jobs = [job(name, starts, folder, **split) for name in FULL | ADAPTERS]
    killed = job("dpo", starts, folder, stop=7, **split)
    straight, ended, again = trained(folder, [jobs, [killed], [killed | {"stop": None}]])
    log = (folder / "log").read_text(errors="replace")[-4000:]
    assert not any(straight), log
    assert any(ended)
    assert not any(again), log
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL | ADAPTERS)
def test_losses_and_weights_are_those_of_one_process(
    name: str, sharded: Path, starts: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    alone = job(name, starts, tmp_path, batch_size=4, gradient_accumulation=1)
    method = alone["method"]
    config = CONFIGS[method](**alone["config"])
    plan = TrainingPlan(method, Dataset.from_list(alone["rows"]), alone["model"], Path(alone["output"]), config)
    train(plan, METHODS[method])
    ours, theirs = sharded / name, tmp_path / name
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    assert record(ours)["fingerprint"] == record(theirs)["fingerprint"]
    assert record(ours)["weights"]["margin_left"] == record(theirs)["weights"]["margin_left"]
    saved, expected = (load_file(str(each / "model.safetensors")) for each in (ours, theirs))
    assert {key: (each.shape, each.dtype) for key, each in saved.items()} == {
        key: (each.shape, each.dtype) for key, each in expected.items()
    }
    assert all(torch.allclose(saved[key], expected[key], atol=1e-3) for key in expected)
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    loader = AutoModelForSequenceClassification if method == "prm" else AutoModelForCausalLM
    _, report = loader.from_pretrained(str(ours), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.slow
def test_a_training_that_was_killed_in_the_second_epoch_ends_like_one_that_was_not(sharded: Path) -> None:
    steps = [int(step) for step in (sharded / "dpo-killed.steps").read_text(encoding="utf-8").split()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 7, 8]
    assert losses(sharded / "dpo-killed") == pytest.approx(losses(sharded / "dpo"), abs=1e-6)
    ours, theirs = (load_file(str(sharded / name / "model.safetensors")) for name in ("dpo-killed", "dpo"))
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)


@pytest.mark.slow
@pytest.mark.all_cores
def test_vllm_serves_a_model_that_was_trained_in_shards(tmp_path: Path) -> None:
    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    start = tiny_model(tmp_path / "start", "chatml", heads=1)  # one head of 64, a size that vLLM's CPU kernels have
    one = job("sft", {"sft": {"chatml": start}}, tmp_path, batch_size=1, gradient_accumulation=2)
    (ended,) = trained(tmp_path, [[one]])
    assert not any(ended), (tmp_path / "log").read_text(errors="replace")[-4000:]
    prompt = AutoTokenizer.from_pretrained(one["output"]).encode("hi 3")
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(one["output"])(torch.tensor([prompt])).logits[0, -1]
    options = ServerOptions(one["output"], tmp_path / "server.log", max_model_len=256, kv_cache_gib=1, dtype="float32")
    with (
        ManagedServer(options) as server,
        openai.OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0) as client,
    ):
        answer = client.completions.create(model="actor", prompt=prompt, max_tokens=1, temperature=0, logprobs=1)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs == pytest.approx([logits.log_softmax(-1).max().item()], abs=1e-3)
