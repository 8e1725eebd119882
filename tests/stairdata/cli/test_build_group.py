"""`stairdata build`: one command a kind, found wherever the kind is among the arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from typer.main import get_command

from stairdata.cli.main import app

if TYPE_CHECKING:
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]
KINDS = ["prompts", "structured-cot", "trees", "preference-pairs", "prm-pairs", "responses", "evaluations"]
SERVERS = {"--endpoints", "--executor", "--address"}
BATCHES = {"--batch", "--batch-files"}
OWN = {
    "prompts": {"--decontaminate"} | SERVERS,
    "structured-cot": {"--teachers", "--retry-quarantined", "--shard"} | SERVERS | BATCHES,
    "trees": {"--pilot", "--rejudge", "--shard"} | SERVERS,
    "preference-pairs": {"--reviews"},
    "prm-pairs": set(),
    "responses": {"--shard"} | SERVERS | BATCHES,
    "evaluations": {"--exclude-seen", "--shard"} | SERVERS | BATCHES,
}
SHARED = {
    "--recipe", "--set", "--input", "--root", "--version", "--limit", "--fresh", "--dry-run", "--max-total-tokens",
    "--max-cost", "--max-seconds", "--max-quarantine", "--json",
}  # fmt: skip


def group() -> Any:
    return get_command(app).commands["build"]  # type: ignore[attr-defined]


@pytest.fixture
def source(tmp_path: Path) -> str:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "one", "task": "safety"}\n{"prompt": "two", "task": "helpfulness"}\n')
    return f"prompts.sources=[{{path: {file}}}]"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_takes_what_is_shared_and_its_own_alone(kind: str, run: Run) -> None:
    options = {name for parameter in group().commands[kind].params for name in parameter.opts if name != "--help"}
    assert options == SHARED | OWN[kind]
    ended = run("build", kind, "--help")
    assert ended.status == 0
    shown = set(re.findall(r"--[a-z-]+", ended.out))
    assert OWN[kind] <= shown
    assert not shown & (set().union(*OWN.values()) - OWN[kind]), "its help shows only what it takes"


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_of_another_kind_is_wrong_usage(kind: str, run: Run) -> None:
    for option in set().union(*OWN.values()) - OWN[kind]:
        ended = run("build", kind, option, "x")
        assert (ended.status, ended.out) == (2, ""), option
        assert f"No such option: {option}" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["prompts", "--limit", "1", "--set", "SOURCE"],
        ["--limit", "1", "prompts", "--set", "SOURCE"],
        ["--limit", "1", "--set", "SOURCE", "prompts"],
        ["--limit=1", "--fresh", "prompts", "--set", "SOURCE"],
        ["--set", "SOURCE", "--limit", "1", "--fresh", "prompts"],
        ["--fresh", "--set=SOURCE", "prompts", "--limit=1"],
    ],
)
def test_options_may_come_before_the_kind(arguments: list[str], source: str, run: Run) -> None:
    ended = run("build", *(argument.replace("SOURCE", source) for argument in arguments))
    assert (ended.status, ended.out) == (0, "prompts@1.0.0\n"), ended.err
    assert "1 rows" in ended.err


def test_a_value_that_is_a_kind_is_no_kind(source: str, run: Run) -> None:
    ended = run("build", "--root", "trees", "prompts", "--set", source)
    assert ended.out == "prompts@1.0.0\n"
    assert Path("trees/prompts/1.0.0/manifest.json").is_file()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "-" in kind])
def test_underscores_stand_for_dashes(kind: str, run: Run) -> None:
    first, second = run("build", kind), run("build", kind.replace("-", "_"))
    assert (first.status, first.err) == (second.status, second.err)
    assert first.status == 1, "there are no trees and no prompts to build it from"


def test_an_unknown_kind_names_the_nearest(run: Run) -> None:
    for arguments in (("--limit", "3", "tres"), ("tres", "--limit", "3"), ("tres",)):
        ended = run("build", *arguments)
        assert (ended.status, ended.out) == (2, "")
        assert "can't build 'tres'; did you mean 'trees'?" in ended.err


@given(st.permutations([("--limit", "2"), ("--root", "r"), ("--set", "seed=1"), ("--fresh",)]), st.integers(0, 4))
def test_the_kind_is_found_at_any_place(options: list[tuple[str, ...]], place: int) -> None:
    parts = [*options[:place], ("preference_pairs",), *options[place:]]
    ordered = group().kind_first([argument for part in parts for argument in part])
    assert ordered == ["preference-pairs", *(argument for part in options for argument in part)]


def test_batch_alone_may_come_before_the_kind() -> None:
    assert group().kind_first(["--batch", "structured_cot"]) == ["structured-cot", "--batch", "submit"]
    assert group().kind_first(["--batch", "collect", "structured-cot"]) == ["structured-cot", "--batch", "collect"]
    assert group().kind_first(["structured-cot", "--batch"]) == ["structured-cot", "--batch", "submit"]


def test_json_tells_what_was_built(source: str, run: Run) -> None:
    facts = json.loads(run("build", "prompts", "--set", source, "--json").out)
    assert (facts["artifact"], facts["rows"], facts["refused"], facts["state"]) == ("prompts@1.0.0", 2, 0, "complete")
    assert Path(facts["folder"], "manifest.json").is_file()
    again = json.loads(run("build", "prompts", "--set", source, "--json").out)
    assert again == facts
    assert json.loads(run("build", "prompts", "--set", source, "--dry-run", "--json").out) == {
        "kind": "prompts", "words": "", "models": [], "finished": None,
    }  # fmt: skip


def test_json_of_an_import_and_an_export(source: str, run: Run, tmp_path: Path) -> None:
    run("build", "prompts", "--set", source)
    file = tmp_path / "out.json"
    facts = json.loads(run("export", "prompts", str(file), "--to", "thu-ml", "--json").out)
    assert facts == {"file": str(file), "artifact": "prompts@1.0.0", "rows": 2}
    imported = run("import", str(file), "--from", "thu-ml", "--kind", "prompts", "--root", "other", "--json")
    assert json.loads(imported.out)["rows"] == 2, imported.err


def test_every_command_with_a_result_takes_json() -> None:
    without = {"schema"}  # what it prints is JSON
    commands: dict[str, Any] = dict(get_command(app).commands)  # type: ignore[attr-defined]
    for name in ("build", "review"):
        commands |= {f"{name} {inner}": command for inner, command in commands.pop(name).commands.items()}
    without |= {"review stop"}
    assert {
        name
        for name, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    } == without
