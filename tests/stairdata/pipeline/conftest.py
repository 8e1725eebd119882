"""A recipe of two rounds, small enough for a test, and what it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stairdata.llm import vllm_server
from stairdata.llm.vllm_server import ServerOptions
from stairdata.pipeline.run import Pipeline
from stairdata.pipeline.steps import RunOptions
from stairdata.stages import parse_full_recipe
from stairdata_schemas.artifacts import list_folders, open_artifact
from stairdata_schemas.grammar import Step, render
from stairdata_schemas.manifest import sha256_of_json
from stairdata_schemas.rendering import model_hash
from tests.stairdata.pipeline.on_stub import stub_command

PROMPTS = 24
ROOT = Path(__file__).parents[3]
MODELS = ("sft", "dpo-1", "dpo-2", "prm")


def tiny_model(folder: Path, tokenizer_folder: Path) -> Path:
    """Write a model of random weights, the same each time."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_inputs(folder: Path) -> dict[str, Any]:
    """Write prompts and structured reasoning, and return the sections of a recipe that uses them."""
    prompts = [
        {
            "prompt": f"What about number {number}?",
            "task": "safety" if number % 2 else "helpfulness",
            "reference_answer": f"Here is how: water plan {number}.",
            "reference_is_safe": True,
        }
        for number in range(PROMPTS)
    ]
    rows = []
    for number in range(8):
        steps = [Step("Plan:", f"think of {number}"), Step("Check:", "it is so")]
        row = {"prompt": f"hi {number}", "task": "helpfulness", "output": f"yes {number}"}
        rows.append(row | {"steps": [{"title": step.title, "body": step.body} for step in steps]})
        assert render(steps, row["output"])
    for name, lines in (("prompts", prompts), ("cot", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = {
        "epochs": 1,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "gradient_checkpointing": False,
        "checkpoint_steps": 1,
        "learning_rate": 1e-3,
        "max_length": 4096,
    }
    return {
        "rounds": {"count": 2, "prompts_per_round": 6, "held_out": 6, "best_of": 2},
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}]},
        "structured_cot": {"path": str(folder / "cot.jsonl")},
        "sft": {**training, "model": str(folder / "start")},
        "trees": {"iterations": 4, "judge": {"kind": "reference"}},
        "preference_pairs": {"min_visits": 1, "min_margin": 0.1, "min_chosen_value": 0, "max_per_tree": 3},
        "dpo": training,
        "prm_pairs": {"min_visits": 1, "min_margin": 0.1, "min_chosen_value": 0, "max_per_tree": 3},
        "prm": training,
    }


class FinishedRun(NamedTuple):
    """A run of two rounds."""

    sections: dict[str, Any]
    """Of its recipe."""
    folder: Path
    summary: dict[str, Any]
    served: list[str]
    """The model of each server that was started, in order."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> FinishedRun:
    """A whole run on the stub model; copy the folder before something is added to it."""
    root = tmp_path_factory.mktemp("finished")
    tiny_model(root / "start", tokenizer_folder)
    sections = write_inputs(root)
    served: list[str] = []

    def command(options: ServerOptions, port: int) -> list[str]:
        served.append(Path(options.model).name)
        return stub_command(options, port)

    with pytest.MonkeyPatch.context() as patch:
        serve_stub(patch)
        patch.setattr(vllm_server, "vllm_command", command)
        summary = Pipeline(parse_full_recipe(sections), RunOptions(root / "run")).run()
    return FinishedRun(sections, root / "run", summary, served)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a managed server start the stub model."""
    serve_stub(monkeypatch)


def serve_stub(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vllm_server, "vllm_command", stub_command)
    patch.setattr(vllm_server, "has_memory_for", lambda _: True)
    patch.setenv("PYTHONPATH", str(ROOT))


def hashes(folder: Path) -> dict[str, str]:
    """Hash each artifact's rows, but for how long they took, and each model's weights.

    Scores of a reward model differ in their last digits with the batch that a text was in.
    """
    found: dict[str, str] = {}
    for kind, version, path in list_folders(folder / "artifacts"):
        rows: list[dict[str, Any]] = open_artifact(path).scan().collect().to_dicts()
        found[f"{kind}@{version}"] = sha256_of_json(_rounded([row | {"seconds": None} for row in rows]))
    return found | {name: model_hash(folder / "models" / name) for name in MODELS}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    """The sections of a recipe; its start model, `start`, is not there."""
    return write_inputs(tmp_path)
