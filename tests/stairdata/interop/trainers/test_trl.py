"""Exports to TRL, read and trained on by TRL's own trainers: where their end tokens fall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stairdata.interop.trainers.exporting import TrainerOptions, export_to_trainer
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError
from stairdata_schemas.grammar import CLOSING_TAGS
from stairdata_schemas.rendering import load_tokenizer, render_prompt
from tests.stairdata.interop.trainers.conftest import MakeArtifact, pair, response

ENDS = {"chatml": "<|im_end|>\n", "llama3": "<|eot_id|>"}
"""What each template writes behind an assistant's turn."""
QUICK = (
    "--max_steps 5 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --report_to none --save_strategy no "
    "--use_cpu true --bf16 false --gradient_checkpointing false"
)


@pytest.fixture(params=sorted(ENDS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, actors: dict[str, Path]) -> Path:
    return actors[family]


def trained(method: str, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train five steps as `trl METHOD --config train.yaml` does: by TRL's own parser, loader of data and trainer."""
    import trl
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(folder)
    config, trainer = getattr(trl, f"{method}Config"), getattr(trl, f"{method}Trainer")
    parser = trl.TrlParser((trl.ScriptArguments, config, trl.ModelConfig, trl.DatasetMixtureConfig))
    _, args, model_args, mixture = parser.parse_args_and_config(["--config", "train.yaml", *QUICK.split()])
    assert model_args.model_name_or_path == "MODEL"
    network: Any = str(model)
    if method == "Reward":
        network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    data = trl.get_dataset(mixture)["train"]
    made = trainer(model=network, args=args, train_dataset=data, processing_class=load_tokenizer(model))
    result = made.train()
    assert result.global_step == 5
    assert result.training_loss > 0
    return made


def texts(trainer: Any, column: str) -> list[str]:
    """What the trainer made of the rows."""
    decoded: list[str] = trainer.processing_class.batch_decode(list(trainer.train_dataset[column]))
    return decoded


def end(text: str) -> str:
    """Return what stands behind the last step."""
    return text[max(text.rfind(tag) + len(tag) for tag in CLOSING_TAGS if tag in text) :]


def test_sft(cot: Artifact, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export_to_trainer(cot, tmp_path / "sft", "trl").rows == 8
    trainer = trained("SFT", tmp_path / "sft", model, monkeypatch)
    trained_on = [
        trainer.processing_class.decode([token for token in labels if token != -100])
        for labels in trainer.train_dataset["labels"]
    ]
    rows = cot.scan().collect()
    assert trained_on == [completion + ENDS[model.name] for completion in rows["completion"]]


@pytest.mark.parametrize(("kind", "method"), [("preference_pairs", "DPO"), ("prm_pairs", "Reward")])
def test_pairs_of_whole_answers_end_there(
    kind: str,
    method: str,
    model: Path,
    make_artifact: MakeArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = make_artifact(kind, [pair(number) for number in range(16)])
    done = export_to_trainer(artifact, tmp_path / "pairs", "trl", TrainerOptions(whole_answers=True))
    assert (done.rows, done.left_out()) == (8, {"half-written answers": 8})
    trainer = trained(method, tmp_path / "pairs", model, monkeypatch)
    for column in ("chosen_ids", "rejected_ids"):
        read = texts(trainer, column)
        assert len(read) == 8
        assert all(text.endswith("<|/Output|>" + ENDS[model.name]) for text in read)


@pytest.mark.slow
def test_allow_eos_ends_each_step(
    pairs: Artifact, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harm that the export refuses to do unasked, shown."""
    assert export_to_trainer(pairs, tmp_path / "pairs", "trl", TrainerOptions(allow_eos=True)).rows == 16
    trainer = trained("DPO", tmp_path / "pairs", model, monkeypatch)
    half_written = [text for text in texts(trainer, "chosen_ids") if "<|/Output|>" not in text]
    assert len(half_written) == 8
    assert {end(text) for text in half_written} == {ENDS[model.name]}


def test_token_ids_of_a_reward_model_end_whole_answers_alone(
    prm_pairs: Artifact, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainerOptions(tokenizer=str(model))
    assert export_to_trainer(prm_pairs, tmp_path / "ids", "trl", options).rows == 16
    trainer = trained("Reward", tmp_path / "ids", model, monkeypatch)
    tokenizer = trainer.processing_class
    turn = ENDS[model.name].rstrip("\n")  # the template's line feed is not of the turn: a model stops before it
    for side in ("chosen", "rejected"):
        expected = [
            render_prompt(tokenizer, row["prompt"]).text + row[side] + turn * row[f"{side}_is_terminal"]
            for row in prm_pairs.scan().collect().iter_rows(named=True)
        ]
        assert texts(trainer, f"{side}_ids") == expected


@pytest.mark.slow
def test_token_ids_of_answers_end_whole_ones_alone(
    model: Path,
    make_artifact: MakeArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    responses = make_artifact("responses", [response(1), response(2, is_complete=False)])
    with pytest.raises(UsageError, match="1 of 2 rows hold half-written answers, and TRL puts an end token"):
        export_to_trainer(responses, tmp_path / "ids", "trl")
    export_to_trainer(responses, tmp_path / "ids", "trl", TrainerOptions(tokenizer=str(model)))
    trainer = trained("SFT", tmp_path / "ids", model, monkeypatch)
    whole, cut = (
        trainer.processing_class.decode([token for token in labels if token != -100])
        for labels in trainer.train_dataset["labels"]
    )
    assert (end(whole), end(cut)) == (ENDS[model.name].rstrip("\n"), "")
