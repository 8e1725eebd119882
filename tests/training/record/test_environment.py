"""What a training ran on, and what it must not say."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import torch

from stairdata_training.record.environment import environment


def test_versions_and_devices_are_named() -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    assert {"stairdata", "torch", "transformers", "trl", "accelerate", "peft"} <= found["packages"].keys()
    assert found["packages"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"]


def test_no_machine_no_user_and_no_path_is_named() -> None:
    text = json.dumps(environment())
    for private in (platform.node(), getpass.getuser(), str(Path.home()), str(Path.cwd()), "/"):
        assert not any(private == value for value in json.loads(text).values())
    assert platform.node() not in text
    assert str(Path.cwd()) not in text
