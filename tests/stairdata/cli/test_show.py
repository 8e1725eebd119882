"""`show` on trees and pairs, `diff`, `import` and `export`, as a user types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from tests.stairdata.forests import Shape, artifact_of, tree_of

if TYPE_CHECKING:
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]
EVIL = "<script>alert(1)</script> [bold red]x[/bold red] \x1b[31m \u202e"
SHOWN = r"<script>alert(1)</script> [bold red]x[/bold red] \x1b[31m \u202e"
SHAPE: Shape = [
    (1, 0, f"<|Reasoning_step|>\nTitle: T1 {EVIL}\nbody {EVIL}\n<|/Reasoning_step|>", False, 2.0, 4),
    (2, 0, "worse [link=file:///x]y[/link]", False, -1.0, 4),
    (3, 1, "\n\n<|Output|>\nFinal Answer:\nfine\n<|/Output|>", True, 3.0, 2),
    (4, 1, "\n\n<|Output|>\nFinal Answer:\nbad\n<|/Output|>", True, -3.0, 2),
]


@pytest.fixture
def trees(tmp_path: Path) -> Artifact:
    return artifact_of(tmp_path / "artifacts", [tree_of(SHAPE, number) for number in range(5)])


@pytest.fixture
def pairs(trees: Artifact, tmp_path: Path) -> Artifact:
    return build_preference_pairs(Recipe(), BuildOptions(root=tmp_path / "artifacts"))


def first_id(artifact: Artifact) -> str:
    return str(artifact.scan().head(1).collect()["tree_id"][0])


def test_a_tree_is_drawn(run: Run, trees: Artifact) -> None:
    ended = run("show", "trees@1.0.0", first_id(trees))
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[:2] == [f"tree {first_id(trees)} of trees@1.0.0: 5 nodes; * marks the best path", "prompt: 'p0'"]
    assert lines[2].startswith("* +0.33  12 visits  2 of 4 safe  #0 'the prompt'")
    assert lines[3].startswith(f"├── * +1.00  8 visits  2 of 4 safe  #1 'T1 {SHOWN[:40]}")
    assert lines[4].startswith("│   ├── * +3.00  2 visits  safe end  #3 'Answer: fine'")
    assert lines[6].startswith("└──   -1.00  4 visits  unknown  #2 'worse [link=file:///x]y[/link]'")
    assert "\x1b" not in ended.out


def test_a_tree_deeper_than_the_terminal_is_wide_is_drawn_whole(run: Run, tmp_path: Path) -> None:
    chain: Shape = [(number, number - 1, f"step {number}", False, 1.0, 4) for number in range(1, 61)]
    artifact = artifact_of(tmp_path / "artifacts", [tree_of(chain, 0)])
    lines = run("show", "trees", first_id(artifact)).out.splitlines()
    assert len(lines) == 2 + 61
    assert lines[-1].endswith("#60 'step 60'")


def test_trees_are_listed(run: Run, trees: Artifact) -> None:
    ended = run("show", "trees")
    assert first_id(trees) in ended.out
    assert "+0.33" in ended.out


def test_a_tree_as_json(run: Run, trees: Artifact) -> None:
    tree = json.loads(run("show", "trees", first_id(trees)[:8], "--json").out)
    assert (tree["prompt"], len(tree["nodes"])) == ("p0", 5)


def test_pairs_side_by_side(run: Run, pairs: Artifact) -> None:
    ended = run("show", "preference-pairs@1.0.0", "--rows", "1")
    assert ended.status == 0
    assert "1 of" not in ended.out
    assert "10 pairs in all; more with --rows N" in ended.err
    assert "chosen: value +" in ended.out
    everything = run("show", "preference-pairs", "--rows", "100").out
    assert everything.count("pair at depth") == 10
    assert "after: 'T1 " in everything, "the shared steps' titles"
    assert SHOWN in everything
    assert "\x1b" not in everything
    line = next(line for line in everything.splitlines() if "fine" in line)
    assert "bad" in line, "the differing steps stand side by side"
    mine = run("show", "preference-pairs", pairs.scan().collect()["tree_id"][0], "--rows", "9")
    assert mine.out.count("pair at depth") == 2


def test_pairs_are_paged_on_a_terminal(run: Run, pairs: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    paged: list[str] = []
    monkeypatch.setattr("click.echo_via_pager", lambda texts, **_: paged.extend(texts))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run("show", "preference-pairs").status == 0
    assert len(paged) == 10
    assert "\x1b" not in "".join(paged)


@pytest.mark.parametrize("what", ["trees", "preference-pairs", "tree"])
def test_pages_are_written(what: str, run: Run, trees: Artifact, pairs: Artifact, tmp_path: Path) -> None:
    words = ["trees", first_id(trees)] if what == "tree" else [what]
    ended = run("show", *words, "--html", "page.html")
    assert (ended.status, ended.out) == (0, "page.html\n")
    assert "shows text after a click" in ended.err
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_page_without_plotly_says_what_to_install(
    run: Run, trees: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    ended = run("show", "trees", "--html", "page.html")
    assert ended.status == 2
    assert "pip install 'stairdata[report]'" in ended.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["show", "trees", "ffffffff"], 1, "no tree 'ffffffff' in trees@1.0.0"),
        (["show", "trees", "f"], 2, "too short"),
        (["show", "trees", "--html", "no/page.html"], 2, "the folder no does not exist"),
        (["diff", "trees", "preference-pairs"], 2, "of different kinds"),
        (["diff", "trees", "trees@9.0.0"], 1, "no trees@9.0.0"),
        (["import", "x.json", "--from", "thu-ml", "--kind", "trees"], 1, "x.json does not exist"),
        (["import", "x.json", "--from", "hf", "--kind", "trees"], 2, "unknown format 'hf'; use thu-ml"),
        (["import", "x.json", "--from", "thu-ml", "--kind", "pairs"], 2, "can't import 'pairs'"),
        (["import", "--from", "thu-ml", "--kind", "trees"], 2, "Missing argument"),
        (["import", "x.eval", "--from", "inspect", "--kind", "trees"], 2, "--kind is evaluations"),
        (["import", "x.eval", "--from", "inspect", "--kind", "evaluations", "--task", "x"], 2, "unknown task 'x'"),
        (["export", "trees", "x.json", "--to", "hf"], 2, "unknown format 'hf'"),
        (["export", "trees", "no/x.json", "--to", "thu-ml"], 2, "the folder no does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_has_its_status_and_one_message(
    arguments: list[str], status: int, words: str, run: Run, pairs: Artifact
) -> None:
    ended = run(*arguments)
    assert ended.status == status, ended.err
    assert words in ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err


def test_diff(run: Run, pairs: Artifact) -> None:
    assert run("build", "preference-pairs", "--set", "preference_pairs.min_margin=4").out == "preference_pairs@1.1.0\n"
    ended = run("diff", "preference-pairs@1.0.0", "preference-pairs@1.1.0")
    assert (ended.status, ended.err) == (0, "")
    for words in ("removed", "margin", "distance", "min_margin  0.5  4.0"):
        assert words in ended.out
    found: dict[str, Any] = json.loads(run("diff", "preference-pairs@1.0.0", "preference-pairs@1.1.0", "--json").out)
    assert found["rows"] == {"a": 10, "b": 5, "added": 0, "removed": 5, "changed": 0, "same": 5}
    assert found["recipe"] == {"min_margin": [0.5, 4.0]}


def test_export_and_import(run: Run, trees: Artifact, tmp_path: Path) -> None:
    ended = run("export", "trees", "--to", "thu-ml", "out.json")
    assert (ended.status, ended.out) == (0, "out.json\n")
    ended = run("import", "out.json", "--from", "thu-ml", "--kind", "trees")
    assert (ended.status, ended.out) == (0, "trees@1.1.0\n")
    assert "everything was taken over" in ended.err
    assert run("validate", "trees@1.1.0").status == 0
    (tmp_path / "cut.json").write_bytes((tmp_path / "out.json").read_bytes()[:-100])
    ended = run("import", "cut.json", "--from", "thu-ml", "--kind", "trees")
    assert (ended.status, ended.out) == (1, "")
    assert f"at byte {(tmp_path / 'cut.json').stat().st_size}" in ended.err
    assert not (tmp_path / "artifacts" / "trees" / "1.2.0").exists()
    content = json.loads((tmp_path / "out.json").read_text())
    content[0]["0"]["note"] = 1
    (tmp_path / "more.json").write_text(json.dumps(content))
    ended = run("import", "more.json", "--from", "thu-ml", "--kind", "trees", "--version", "1.9.0")
    assert "not taken over: unknown field 'note' (nodes): 1" in ended.err


def test_rows_out_of_trees_ask_no_model(run: Run, trees: Artifact) -> None:
    ended = run("build", "structured-cot", "--input", "trees", "--dry-run")
    assert (ended.status, ended.out) == (0, "structured_cot: asks no model\n")
    ended = run("build", "structured-cot", "--set", "structured_cot={path: x, from_trees: {}}")
    assert ended.status == 1
    assert "give path or from_trees, not both" in ended.err


def test_held_out_pairs_are_not_trained_on(run: Run, trees: Artifact) -> None:
    part = ["--set", "preference_pairs.hold_out=0.9", "--set", "preference_pairs.part=held_out"]
    assert run("build", "preference-pairs", *part).status == 0
    ended = run("train", "dpo", "--model", "x", "--output", "y")
    assert ended.status == 2
    assert "preference_pairs@1.0.0 is held out for evaluation" in ended.err
