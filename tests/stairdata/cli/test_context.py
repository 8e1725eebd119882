"""`stairdata context`: what is here, what is unfinished, and which command goes on with it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from typer.main import get_command

from stairdata.cli.main import app
from stairdata.cli.reports.context import FOLLOWS, commands
from stairdata.pipeline.unfinished import command_of
from stairdata.stages import BUILT_KINDS
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.kinds import KINDS
from stairdata_training.config import TRAINED_ON

if TYPE_CHECKING:
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]


def facts_of(run: Run) -> dict[str, Any]:
    ended = run("context", "--json")
    assert ended.status == 0, ended.err
    facts: dict[str, Any] = json.loads(ended.out)
    return facts


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def started(words: str) -> dict[str, Any]:
    return {"argv": ["/somewhere/bin/stairdata", *shlex.split(words)], "cwd": str(Path.cwd())}


def test_in_an_empty_folder_it_names_kinds_and_commands_and_how_to_begin(run: Run, tmp_path: Path) -> None:
    facts = facts_of(run)
    assert [each["kind"] for each in facts["kinds"]] == list(KINDS)
    assert {"stairdata context", "stairdata build trees", "stairdata review pull"} <= {
        each["command"] for each in facts["commands"]
    }
    assert "quickstart" in facts["recipes"]
    assert facts["artifacts"] == facts["models"] == facts["unfinished"] == []
    assert [each["command"].split(" --")[0] for each in facts["next"]] == [
        "stairdata quickstart",
        "stairdata build prompts",
    ]
    assert list(tmp_path.iterdir()) == []


def test_every_command_that_it_proposes_is_one_of_the_program() -> None:
    known = {each["command"]: each for each in commands(get_command(app))}
    for given, made, words, _ in FOLLOWS:
        name = next(each for each in known if f"stairdata {words} ".startswith(f"{each} "))
        options = [word for word in words.split() if word.startswith("--")]
        assert set(options) <= set(known[name]["options"]), words
        assert given in BUILT_KINDS
        assert made in {*BUILT_KINDS, *TRAINED_ON}
    made_by = {each["made_by"] for each in _kinds()}
    assert made_by <= set(known)


def _kinds() -> list[dict[str, Any]]:
    from stairdata.cli.reports.context import _kinds

    return _kinds()


def test_what_is_finished_is_listed_with_what_can_be_made_of_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "Why?", "task": "safety"}\n')
    run("build", "prompts", "--set", "prompts.sources=[{path: q.jsonl}]")
    record = {"identity": {"trainer": "sft/2"}, "data": {"kind": "structured_cot", "reference": "structured_cot@1.0.0"}}
    write_json(tmp_path / "runs" / "sft" / "training.json", record)
    facts = facts_of(run)
    assert [(each["artifact"], each["state"]) for each in facts["artifacts"]] == [("prompts@1.0.0", "complete")]
    assert facts["models"] == [{"folder": "runs/sft", "method": "sft", "trained_on": "structured_cot@1.0.0"}]
    following = [shlex.split(each["command"])[2] for each in facts["next"]]
    assert following == ["structured-cot", "trees"]
    shown = run("context").out
    assert "prompts@1.0.0" in shown
    assert "stairdata build trees --recipe RECIPE --limit 8 --dry-run\n" in shown


def test_a_build_that_was_left_tells_the_command_that_began_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("list")  # into the folder
    key = "hf_" + "q8Kd2mZx7Rt4Vb9Ln3Wc6Yp1Hs5Jf0GaEu"
    monkeypatch.setattr(sys, "argv", ["/bin/stairdata", "build", "trees", "--recipe", "my recipe.yaml", "--set", key])
    with begin_build(BuildPlan("trees", "trees/3", {}), Path("artifacts")) as build:  # type: ignore[union-attr]
        journal = build.journal("rows.jsonl")
        journal.append({"key": "a"})
        journal.close()
        assert facts_of(run)["unfinished"][0]["state"] == "running"
    facts = facts_of(run)
    assert key not in json.dumps(facts)
    (left,) = facts["unfinished"]
    assert (left["what"], left["name"], left["state"], left["done"]) == (
        "build",
        "trees@1.0.0",
        "stopped",
        {"rows.jsonl": 1},
    )
    assert left["command"].startswith("stairdata build trees --recipe 'my recipe.yaml' --set ")
    assert facts["next"][0]["command"] == left["command"]


def test_runs_and_trainings_are_found_and_each_command_is_proposed_once(run: Run, tmp_path: Path) -> None:
    run("list")
    words = "run one-round --folder work --set sft.model=base"
    write_json(tmp_path / "work" / "started.json", started(words))
    write_json(tmp_path / "work" / "artifacts" / "trees" / "1.0.0" / ".build" / "build.json", started(words))
    write_json(tmp_path / "work" / "models" / "sft.partial" / "started.json", {"started": started(words)})
    (tmp_path / "work" / "models" / "sft.partial" / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    facts = facts_of(run)
    assert {(each["what"], each["name"], each["state"]) for each in facts["unfinished"]} == {
        ("run", "work", "stopped"),
        ("build", "trees@1.0.0", "stopped"),
        ("training", "work/models/sft", "stopped"),
    }
    assert facts["unfinished"][2]["done"] == {"checkpoints": 1}
    assert [each["command"] for each in facts["next"]].count(f"stairdata {words}") == 1
    with FileLock(tmp_path / "work" / ".lock"):
        assert facts_of(run)["unfinished"][0]["state"] == "running"


def test_refused_rows_and_damaged_manifests_come_with_what_to_do(run: Run, tmp_path: Path) -> None:
    run("list")
    folder = tmp_path / "artifacts" / "prompts" / "1.0.0"
    write_json(folder / ".build" / "build.json", started("build prompts"))
    (folder / "quarantine").mkdir()
    (tmp_path / "artifacts" / "trees" / "1.0.0").mkdir(parents=True)
    (tmp_path / "artifacts" / "trees" / "1.0.0" / "manifest.json").write_text("{")
    facts = facts_of(run)
    assert facts["unfinished"][0]["state"] == "refused"
    assert "artifacts/prompts/1.0.0/quarantine" in facts["next"][0]["why"]
    assert facts["next"][1]["command"] == "stairdata validate trees@1.0.0 --root artifacts"


@pytest.mark.parametrize(
    ("begun", "collect", "expected"),
    [
        ("build trees --fresh --limit 8", False, "stairdata build trees --limit 8"),
        ("build structured-cot --batch", True, "stairdata build structured-cot --batch collect"),
        (
            "build structured-cot --batch submit --limit 2",
            True,
            "stairdata build structured-cot --batch collect --limit 2",
        ),
        ("build structured-cot --batch --limit 2", True, "stairdata build structured-cot --batch collect --limit 2"),
    ],
)
def test_a_command_goes_on_and_does_not_start_over(begun: str, collect: bool, expected: str) -> None:
    assert command_of(started(begun), collect=collect) == expected


def test_a_command_of_another_folder_says_so_and_other_programs_have_none() -> None:
    assert command_of(started("list") | {"cwd": "/a b"}) == "cd '/a b' && stairdata list"
    for other in ({}, None, {"argv": [], "cwd": "/"}, {"argv": ["train.py"], "cwd": "/"}):
        assert command_of(other) is None
