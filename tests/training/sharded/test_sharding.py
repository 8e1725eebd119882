"""Which ways of sharding are refused before anything is loaded, and copies of networks that share weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from stairdata_schemas.errors import TrainingError, UsageError
from stairdata_training.launch import accelerate_config
from stairdata_training.sharding import (
    check_checkpoint,
    check_sharding,
    sharding_here,
    sharing_weights,
    with_weights,
    without_weights,
)

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version has to be 2, not '1'"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type has to be FULL_STATE_DICT"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading has to be false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "True"}, "fsdp_activation_checkpointing has to be false"),
    ],
)
def test_settings_that_trainings_cannot_deal_with(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (FSDP | changes).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(TrainingError, match=f"{message}.*--accelerate-config fsdp2` names"):
        check_sharding(2)


def test_settings_that_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sharding(1)
    for key, value in FSDP.items():
        monkeypatch.setenv(key, value)
    assert sharding_here() == "FSDP"
    check_sharding(2)
    with pytest.raises(TrainingError, match="FSDP is switched on and there is one process"):
        check_sharding(1)


def test_deepspeed_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("stairdata_training.sharding.find_spec", lambda _: None)
    with pytest.raises(TrainingError, match="pip install deepspeed"):
        check_sharding(2)
    monkeypatch.setattr("stairdata_training.sharding.find_spec", lambda name: name)
    with pytest.raises(TrainingError, match=r"zero_stage has to be 3.*--accelerate-config zero3` names"):
        check_sharding(2)


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_the_packaged_configurations_are_ones_that_are_not_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = accelerate_config(name)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["mixed_precision"] == "no"
    assert load_config_from_file(str(path)).num_processes == 8
    given = launch_command_parser().parse_args(["--config_file", str(path), "-m", "stairdata"])
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda *_: True)
    arguments, _, _ = _validate_launch_command(given)
    arguments.deepspeed_fields_from_accelerate_config = ""  # as accelerate sets it where DeepSpeed is installed
    made = prepare_multi_gpu_env(arguments) if name == "fsdp2" else prepare_deepspeed_cmd_env(arguments)[1]
    for key, value in made.items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    monkeypatch.setattr("stairdata_training.sharding.find_spec", lambda found: found)
    assert sharding_here() == {"fsdp2": "FSDP", "zero3": "DeepSpeed"}[name]
    check_sharding(8)


def test_a_configuration_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="did you mean 'fsdp2'"):
        accelerate_config("fsdp")


def test_a_checkpoint_goes_on_as_it_was_started(tmp_path: Path) -> None:
    check_checkpoint(tmp_path, None)
    with pytest.raises(TrainingError, match="written without sharding, and this training runs under FSDP"):
        check_checkpoint(tmp_path, "FSDP")
    (tmp_path / "pytorch_model_fsdp.bin").touch()
    check_checkpoint(tmp_path, "FSDP")
    with pytest.raises(TrainingError, match="written under FSDP, and this training runs without sharding"):
        check_checkpoint(tmp_path, None)


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_copies_of_a_network(family: str, actors: dict[str, Path]) -> None:
    network = AutoModelForCausalLM.from_pretrained(str(actors[family]))
    names = [name for name, _ in network.named_parameters()]
    shared, empty = sharing_weights(network), without_weights(network)
    for each in (shared, empty):
        assert [name for name, _ in each.named_parameters()] == names
        assert (each.lm_head.weight is each.model.embed_tokens.weight) == (family == "chatml")
    assert shared.model.norm.weight is not network.model.norm.weight
    assert shared.model.norm.weight.data_ptr() == network.model.norm.weight.data_ptr()
    assert all(weight.is_meta for weight in empty.parameters())
    whole = with_weights(empty, dict(network.named_parameters()))
    ids = torch.arange(12)[None]
    assert torch.equal(whole(ids).logits, network(ids).logits)
