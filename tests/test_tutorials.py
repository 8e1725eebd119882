"""The tutorials run as scripts in an empty folder; what they leave to people, a test does in their place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stairdata_schemas.artifacts import list_folders, open_artifact, validate_artifact
from stairdata_schemas.grammar import is_grammatical
from tests.test_docs import answer_in_argilla

if TYPE_CHECKING:
    from tests.conftest import StubServer

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
pytestmark = pytest.mark.slow


def begin(name: str, folder: Path, **settings: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "STAIRDATA_HOME": str(folder / "home")} | settings
    return subprocess.Popen(
        [sys.executable, str(TUTORIALS / name)],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(tutorial: subprocess.Popen[str], typed: str = "") -> str:
    shown, complaints = tutorial.communicate(typed, timeout=300)
    assert tutorial.returncode == 0, complaints[-3000:]
    return shown


def built(folder: Path) -> dict[str, int]:
    """Return the rows of each artifact, all of which have to be valid, and whole answers in the step grammar."""
    artifacts = [open_artifact(path) for _, _, path in list_folders(folder / "artifacts")]
    assert [problem for artifact in artifacts for problem in validate_artifact(artifact)] == []
    for pairs in (artifact.scan() for artifact in artifacts if artifact.kind == "preference_pairs"):
        whole = pairs.filter("chosen_is_terminal").collect()["chosen"]
        assert [answer for answer in whole if not is_grammatical(answer)] == []
    return {artifact.reference: artifact.manifest.rows for artifact in artifacts}


def test_data_alone(tmp_path: Path, stub_llm: StubServer) -> None:
    settings = {"TEACHER_URL": stub_llm.base_url, "TEACHER_MODEL": "actor", "OPENAI_API_KEY": "of-a-test"}
    shown = finish(begin("1_data.py", tmp_path, **settings))
    assert built(tmp_path) == {"prompts@1.0.0": 6, "structured_cot@1.0.0": 6}
    assert "duplicate_prompt" in shown
    assert "<|/Output|>" in shown
    assert stub_llm.stats()["paths"]["/v1/chat/completions"] == 6


def test_own_model(tmp_path: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    shown = finish(begin("2_own_model.py", tmp_path, STAIRDATA_MODEL="model", MAX_NEW_TOKENS="8"))
    rows = built(tmp_path)
    assert rows.keys() == {"prompts@1.0.0", "trees@1.0.0", "preference_pairs@1.0.0", "prm_pairs@1.0.0"}
    assert rows["trees@1.0.0"] == 4
    assert "nodes; the best first step:" in shown


@pytest.fixture
def review_folder(tmp_path: Path) -> Iterator[Path]:
    from stairdata_review.server.background import stop_server
    from stairdata_review.server.environment import ensure_environment
    from stairdata_schemas.errors import ReviewError

    try:
        ensure_environment()
    except ReviewError as error:
        pytest.skip(f"Argilla's server can't be installed here: {error}")
    yield tmp_path
    stop_server(tmp_path / "home" / "argilla")  # of a tutorial that failed before it did that itself


def test_review_round(review_folder: Path) -> None:
    tutorial = begin("3_review.py", review_folder)
    assert tutorial.stdout is not None
    if not any("press Enter" in line for line in tutorial.stdout):
        finish(tutorial)
    answer_in_argilla(review_folder)
    shown = finish(tutorial, "\n")
    rows = built(review_folder)
    assert rows["reviews@1.0.0"] == rows["preference_pairs@1.0.0"]
    assert "'flipped': 0" not in shown
    assert "made from trees reviews" in shown
