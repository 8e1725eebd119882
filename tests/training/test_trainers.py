"""The three trainers on a tiny random model: what reaches the model, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from stairdata_schemas.errors import ModelError, TrainingError
from stairdata_schemas.grammar import TAGS
from stairdata_schemas.rendering import encode, encode_prompt, end_of_turn, load_tokenizer, missing_tags, render_prompt
from stairdata_training.config import DpoConfig, LoraConfig, PrmConfig, SftConfig, TrainingConfig
from stairdata_training.dpo import DPO, train_dpo
from stairdata_training.output import TrainingSummary
from stairdata_training.plan import TrainingPlan
from stairdata_training.prm import PRM, train_prm
from stairdata_training.scoring import PrmScorer
from stairdata_training.sft import SFT, train_sft
from stairdata_training.trainers.method import Method, prepare_trainer
from tests.training.conftest import pair_row

Rows = list[dict[str, Any]]
COMMON: dict[str, Any] = {
    "epochs": 3,
    "learning_rate": 3e-3,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "max_length": 400,
    "gradient_checkpointing": False,
}


def sft_config(**changes: Any) -> SftConfig:
    return SftConfig(**(COMMON | changes))


def dpo_config(**changes: Any) -> DpoConfig:
    return DpoConfig(**(COMMON | changes))


def prm_config(**changes: Any) -> PrmConfig:
    return PrmConfig(**(COMMON | changes))


METHODS: dict[str, tuple[Callable[..., TrainingSummary], Callable[..., TrainingConfig]]] = {
    "sft": (train_sft, sft_config),
    "dpo": (train_dpo, dpo_config),
    "prm": (train_prm, prm_config),
}


def trainer_of(method: Method, rows: Dataset, model: Path, config: TrainingConfig, folder: Path) -> Any:
    return prepare_trainer(method, rows, model, config, folder).trainer


def batches(trainer: Any) -> list[dict[str, torch.Tensor]]:
    return list(trainer.get_train_dataloader())


def real_ids(batch: dict[str, torch.Tensor], key: str = "input_ids") -> list[list[int]]:
    return [row[mask.bool()].tolist() for row, mask in zip(batch[key], batch["attention_mask"], strict=True)]


def end_text(family: str) -> str:
    return {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}[family]


def test_sft_batches_hold_prompt_answer_and_one_end_of_turn(
    models: dict[str, Path], family: str, sft_rows: Rows, tmp_path: Path
) -> None:
    trainer = trainer_of(SFT, Dataset.from_list(sft_rows), models[family], sft_config(), tmp_path)
    tokenizer = trainer.processing_class
    expected = {
        render_prompt(tokenizer, row["prompt"]).text + row["completion"] + end_text(family): (
            row["completion"] + end_text(family)
        )
        for row in sft_rows
    }
    seen = {}
    for batch in batches(trainer):
        for ids, labels in zip(real_ids(batch), real_ids(batch, "labels"), strict=True):
            seen[tokenizer.decode(ids)] = tokenizer.decode([label for label in labels if label != -100])
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert seen == expected


def test_dpo_batches_end_only_terminal_steps(
    actors: dict[str, Path], family: str, pair_rows: Rows, tmp_path: Path
) -> None:
    trainer = trainer_of(DPO, Dataset.from_list(pair_rows), actors[family], dpo_config(), tmp_path)
    tokenizer = trainer.processing_class
    expected = {}
    for row in pair_rows:
        for side in ("chosen", "rejected"):
            end = end_text(family) if row[f"{side}_is_terminal"] else ""
            text = render_prompt(tokenizer, row["prompt"]).text + row[side] + end
            expected[text] = row[side][row["prefix_length"] :] + end
    seen = {}
    for batch in batches(trainer):
        masks = real_ids(batch, "completion_mask")
        for ids, mask in zip(real_ids(batch), masks, strict=True):
            scored = [token for token, bit in zip(ids, mask, strict=True) if bit]
            seen[tokenizer.decode(ids)] = tokenizer.decode(scored)
    assert seen == expected


def test_prm_batches_end_only_terminal_steps(
    actors: dict[str, Path], family: str, pair_rows: Rows, tmp_path: Path
) -> None:
    trainer = trainer_of(PRM, Dataset.from_list(pair_rows), actors[family], prm_config(), tmp_path)
    tokenizer = trainer.processing_class
    expected = {
        render_prompt(tokenizer, row["prompt"]).text
        + row[side]
        + (end_text(family) if row[f"{side}_is_terminal"] else "")
        for row in pair_rows
        for side in ("chosen", "rejected")
    }
    assert {tokenizer.decode(ids) for batch in batches(trainer) for ids in real_ids(batch)} == expected


def test_the_reward_is_read_at_the_last_token(
    actors: dict[str, Path], family: str, pair_rows: Rows, tmp_path: Path
) -> None:
    trainer = trainer_of(PRM, Dataset.from_list(pair_rows), actors[family], prm_config(), tmp_path)
    network = trainer.model.eval()
    batch = batches(trainer)[0]
    with torch.inference_mode():
        rewards = network(**batch).logits.squeeze(-1)
        for index, ids in enumerate(real_ids(batch)):
            hidden = network.model(torch.tensor([ids])).last_hidden_state[0, -1]
            assert rewards[index].item() == pytest.approx(network.score(hidden).item(), abs=1e-4)


@pytest.mark.slow
def test_dpo_starts_at_the_reference(actors: dict[str, Path], family: str, pair_rows: Rows, tmp_path: Path) -> None:
    config = dpo_config(precision="fp32", max_steps=1)
    summary = train_dpo(Dataset.from_list(pair_rows), actors[family], tmp_path / "o", config)
    assert summary.first_loss == pytest.approx(0.6931, abs=1e-3)


def check_output(output: Path, config: Any, summary: TrainingSummary) -> None:
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= names
    assert not names & {"checkpoints", "tokens", "started.json", "adapter_config.json"}
    assert not output.with_name(output.name + ".partial").exists()
    record = json.loads((output / "training.json").read_text(encoding="utf-8"))
    assert record["config"]["learning_rate"] == config.learning_rate
    assert record["summary"]["steps"] == summary.steps == len(summary.losses)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def assert_learned(summary: TrainingSummary) -> None:
    losses = [loss for _, loss in summary.losses]
    assert mean(losses[-3:]) < 0.9 * mean(losses[:3])


def test_sft_end_to_end(models: dict[str, Path], family: str, sft_rows: Rows, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    output, calls = tmp_path / "sft", []
    summary = train_sft(
        Dataset.from_list(sft_rows),
        models[family],
        output,
        sft_config(),
        on_progress=lambda step, total, metrics: calls.append((step, total, metrics["loss"])),
    )
    assert [(step, total) for step, total, _ in calls] == [(step, 12) for step in range(1, 13)]
    assert (summary.rows, summary.steps, summary.method) == (16, 12, "sft")
    assert_learned(summary)
    check_output(output, sft_config(), summary)
    network = AutoModelForCausalLM.from_pretrained(str(output))
    tokenizer = load_tokenizer(output)
    assert network.dtype == torch.bfloat16
    assert missing_tags(tokenizer) == []
    ends = GenerationConfig.from_pretrained(str(output)).eos_token_id
    assert ends[0] == end_of_turn(tokenizer).token_id
    assert network.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.slow
def test_sft_on_final_answers_alone(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    rows, config = Dataset.from_list(sft_rows), sft_config(reasoning=False)
    output, whole = tmp_path / "direct", TrainingPlan("sft", rows, models["chatml"], tmp_path, sft_config())
    summary = train_sft(rows, models["chatml"], output, config)
    assert_learned(summary)
    check_output(output, config, summary)
    assert len(missing_tags(load_tokenizer(output))) == len(TAGS)
    direct = TrainingPlan("sft", rows, models["chatml"], output, config)
    assert direct.finished() is not None, "found again"
    assert "reasoning" not in whole.identity["settings"], "models trained before the key was there are found"
    assert direct.identity["settings"]["reasoning"] is False
    with pytest.raises(ModelError, match="run `stairdata train sft` first"):
        train_dpo(Dataset.from_list([pair_row(1)]), output, tmp_path / "dpo", dpo_config())


def test_dpo_end_to_end(actors: dict[str, Path], family: str, pair_rows: Rows, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    summary = train_dpo(Dataset.from_list(pair_rows), actors[family], tmp_path / "dpo", dpo_config())
    assert_learned(summary)
    check_output(tmp_path / "dpo", dpo_config(), summary)
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path / "dpo")).dtype == torch.bfloat16


def test_prm_end_to_end(actors: dict[str, Path], family: str, pair_rows: Rows, tmp_path: Path) -> None:
    summary = train_prm(Dataset.from_list(pair_rows), actors[family], tmp_path / "prm", prm_config())
    assert_learned(summary)
    check_output(tmp_path / "prm", prm_config(), summary)
    scorer = PrmScorer.load(tmp_path / "prm")
    items = [
        (row["prompt"], row[side], row[f"{side}_is_terminal"]) for row in pair_rows for side in ("chosen", "rejected")
    ]
    scores = scorer.score(items)
    right = sum(chosen > rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True))
    assert right >= 14
    alone = [scorer.score([item])[0] for item in items]
    assert scores == pytest.approx(alone, abs=1e-4)
    assert scorer.score(items, batch_size=3) == pytest.approx(alone, abs=1e-4)
    assert scorer.score([]) == []


def test_the_same_seed_gives_the_same_reward_head(actors: dict[str, Path], pair_rows: Rows, tmp_path: Path) -> None:
    heads = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        config = prm_config(seed=seed)
        trainer = trainer_of(PRM, Dataset.from_list(pair_rows), actors["llama3"], config, tmp_path / name)
        heads.append(trainer.model.score.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_language_model_is_no_reward_model(actors: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="is not a reward model"):
        PrmScorer.load(actors["llama3"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "prm"])
def test_lora_is_merged(
    starts: dict[str, dict[str, Path]],
    family: str,
    sft_rows: Rows,
    pair_rows: Rows,
    tmp_path: Path,
    method: str,
) -> None:
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(rank=4, alpha=8)
    train, make = METHODS[method]
    rows = Dataset.from_list(sft_rows if method == "sft" else pair_rows)
    output = tmp_path / "out"
    summary = train(rows, starts[method][family], output, make(lora=lora))
    assert_learned(summary)
    check_output(output, make(), summary)
    if method == "prm":
        assert len(PrmScorer.load(output).score([("hi", "x", False)])) == 1
        return
    network, report = AutoModelForCausalLM.from_pretrained(str(output), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert tied == (family == "chatml")


@pytest.mark.slow
def test_merged_adapters_say_what_the_trained_model_said(
    models: dict[str, Path], family: str, sft_rows: Rows, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    seen: dict[str, torch.Tensor] = {}
    config = sft_config(lora=LoraConfig(rank=4, alpha=8), precision="fp32")
    trainer = trainer_of(SFT, Dataset.from_list(sft_rows), models[family], config, tmp_path)
    trainer.train()
    ids = torch.tensor([encode_prompt(trainer.processing_class, "hi 1", sft_rows[1]["completion"])])
    with torch.inference_mode():
        seen["before"] = trainer.model.eval()(input_ids=ids).logits
    from stairdata_training.models import merged, save_model

    save_model(merged(trainer.model), trainer.processing_class, tmp_path / "saved", "bfloat16")
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved"), dtype=torch.float32)
    with torch.inference_mode():
        seen["after"] = again(input_ids=ids).logits
    error = (seen["before"] - seen["after"]).abs().max() / seen["before"].abs().max()
    assert error < 0.03  # bf16 has 8 bits


@pytest.mark.parametrize("method", ["sft", "dpo", "prm"])
def test_a_row_too_long_stops_before_training(
    starts: dict[str, dict[str, Path]], sft_rows: Rows, pair_rows: Rows, tmp_path: Path, method: str
) -> None:
    train, make = METHODS[method]
    rows = Dataset.from_list(sft_rows if method == "sft" else pair_rows)
    with pytest.raises(
        TrainingError, match=r"16 of 16 rows .* max_length \(40 .*: row (pair|prompt)_id='[0-9a-f]{16}', "
    ):
        train(rows, starts[method]["llama3"], tmp_path / "out", make(max_length=40))
    assert not (tmp_path / "out").exists()


def test_no_rows(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no rows"):
        train_sft(Dataset.from_list(sft_rows).select([]), models["chatml"], tmp_path / "out", sft_config())


def test_a_folder_without_a_model(sft_rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        train_sft(Dataset.from_list(sft_rows), tmp_path / "empty", tmp_path / "out", sft_config())


def test_a_sample_of_rows_is_seeded(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    def sample(name: str, seed: int) -> list[list[int]]:
        (tmp_path / name).mkdir()
        config = sft_config(max_rows=5, seed=seed)
        trainer = trainer_of(SFT, Dataset.from_list(sft_rows), models["llama3"], config, tmp_path / name)
        return [list(ids) for ids in trainer.train_dataset["input_ids"]]

    first = sample("a", 1)
    assert len(first) == 5
    assert sample("b", 1) == first
    assert sample("c", 2) != first


def test_trainers_send_no_telemetry(
    models: dict[str, Path], sft_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *args, **_: sent.append(args))
    trainer_of(SFT, Dataset.from_list(sft_rows), models["llama3"], sft_config(), tmp_path)
    assert sent == []


def test_the_cpu_head_gives_the_models_own_loss(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = sft_config(precision="fp32")
    trainer = trainer_of(SFT, Dataset.from_list(sft_rows), models["llama3"], config, tmp_path)
    batch = batches(trainer)[0]
    plain = AutoModelForCausalLM.from_config(trainer.model.config)
    plain.load_state_dict(trainer.model.state_dict())
    with torch.inference_mode():
        ours = trainer.model.eval()(**batch, fused_lm_head=True)
        theirs = plain.eval()(**batch)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert encode(trainer.processing_class, "a")
