"""What is refused: one message each, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stairdata.interop.trainers import exporting
from stairdata.interop.trainers.exporting import TrainerOptions, export_to_trainer
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError
from tests.stairdata.cli.conftest import Ended
from tests.stairdata.interop.trainers.conftest import MakeArtifact, pair

Run = Callable[..., Ended]

ENDS = r"preference_pairs@1.0.0: 8 of 16 rows hold half-written answers, and {} puts an end token behind every text: "
ENDS += "a model would learn to stop after each step. --whole-answers keeps the 8 other rows; "
OWN = ENDS + "--tokenizer MODEL writes all without that; --allow-eos writes all as they are"
OTHER = ENDS + "--to llama-factory --tokenizer MODEL writes all without that; --allow-eos"
WITH_TOKENIZER = {"tokenizer": "unread"}


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("trl", {}, OTHER.format("TRL")),
        ("llama-factory", {}, OWN.format("LLaMA-Factory")),
        ("openrlhf", {}, OTHER.format("OpenRLHF")),
        ("axolotl", {}, OTHER.format("axolotl")),
        ("verl", {}, "verl can't take preference_pairs; --to verl takes structured_cot, responses"),
        ("trl", WITH_TOKENIZER, "TRL renders preference_pairs itself; leave out --tokenizer"),
        ("openrlhf", {"allow_eos": True, "whole_answers": True}, "leave out --allow-eos"),
        ("stepwise", {"allow_eos": True}, "leave out --allow-eos"),
        ("stepwise", {"whole_answers": True}, "leave out --whole-answers"),
        ("axolotl", {"threshold": 0.5}, "axolotl takes no labels of steps; leave out --threshold"),
    ],
)
def test_half_written_answers_and_options(
    to: str, options: dict[str, Any], message: str, pairs: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refusal:
        export_to_trainer(pairs, tmp_path / "out", to, TrainerOptions(**options))
    assert message in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts"}


def test_a_reward_model_would_learn_something_else(prm_pairs: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a reward model would learn to look for an end .* --tokenizer MODEL writes"):
        export_to_trainer(prm_pairs, tmp_path / "out", "trl")


def test_no_whole_answer_at_all(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    artifact = make_artifact("preference_pairs", [pair(0)])
    with pytest.raises(UsageError, match="has no row of whole answers alone; nothing was written"):
        export_to_trainer(artifact, tmp_path / "out", "trl", TrainerOptions(whole_answers=True))
    with pytest.raises(UsageError) as refusal:
        export_to_trainer(artifact, tmp_path / "out", "trl")
    assert "--whole-answers" not in str(refusal.value)


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("verl", "rows.jsonl", "verl is given .parquet, not .jsonl, or a folder"),
        ("trl", "rows.json", "TRL is given .jsonl or .parquet, not .json, or a folder"),
        ("trl", "full", "full holds something already; name a new folder"),
        ("trl", "absent/out", "the folder .*absent does not exist"),
    ],
)
def test_places(to: str, name: str, message: str, cot: Artifact, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UsageError, match=message):
        export_to_trainer(cot, tmp_path / name, to)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_an_export_that_fails_leaves_nothing(cot: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_readme", fail)
    with pytest.raises(OSError, match="No space left"):
        export_to_trainer(cot, tmp_path / "out", "trl")
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--to", "llama-factry"], 2, "unknown format 'llama-factry'; did you mean llama-factory? Formats are thu-ml,"),
        (["--to", "thu-ml", "--allow-eos"], 2, "--whole-answers, --allow-eos, --tokenizer and --threshold are not for"),
        (["--to", "stepwise"], 2, "stepwise supervision can't take structured_cot; --to stepwise takes trees,"),
        (["--to", "axolotl"], 0, "structured_cot@1.0.0: 8 written"),
    ],
)
def test_the_command(arguments: list[str], status: int, message: str, run: Run, cot: Artifact, tmp_path: Path) -> None:
    ended = run("export", cot.folder, "out", *arguments)
    assert ended.status == status, ended.err
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert (tmp_path / "out").exists() == (status == 0)


def test_the_command_counts_what_it_leaves_out(run: Run, pairs: Artifact) -> None:
    ended = run("export", pairs.folder, "out", "--to", "trl", "--whole-answers", "--json")
    assert ended.status == 0, ended.err
    assert "left out: half-written answers: 8" in ended.err
    assert json.loads(ended.out) == {"file": "out", "artifact": "preference_pairs@1.0.0", "rows": 8}
