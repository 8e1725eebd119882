"""`report`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.stairdata.report.studies import make_study

if TYPE_CHECKING:
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "run")


@pytest.mark.slow
def test_a_run_is_reported_in_its_folder(run: Run, study: Path) -> None:
    ended = run("report", "--folder", study, "--json")
    assert ended.status == 0
    found = json.loads(ended.out)
    assert found["page"] == str(study / "report" / "index.html")
    assert found["artifacts"] == 8
    assert "evaluations" in found["sections"]
    assert all(Path(image).parent == study / "report" for image in found["images"])
    assert "<h1>Report of the run run</h1>" in (study / "report" / "index.html").read_text(encoding="utf-8")


def test_named_artifacts_are_reported_with_their_ancestors(run: Run, study: Path) -> None:
    ended = run("report", "preference-pairs", "--root", study / "artifacts", "--html", "pairs.html", "--title", "Pairs")
    assert (ended.status, ended.out) == (0, "pairs.html\n")
    page = Path("pairs.html").read_text(encoding="utf-8")
    assert "<h1>Pairs</h1>" in page
    assert "trees@1.0.0" in page
    assert "responses@1.0.0" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to report"),
        (["--folder", "nowhere"], "nowhere is no folder"),
        (["trees"], "no complete trees"),
        (["--model", "nowhere"], "nowhere has no training.json"),
        (["--judge-check", "nowhere.json"], "nowhere.json can't be read"),
    ],
)
def test_what_can_not_be_reported_is_one_message(run: Run, arguments: list[str], words: str) -> None:
    ended = run("report", *arguments)
    assert ended.status != 0
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("report").exists()


def test_a_page_that_is_a_folder_is_refused(run: Run, study: Path) -> None:
    ended = run("report", "--folder", study, "--html", study)
    assert ended.status == 2
    assert "is a folder" in ended.err
