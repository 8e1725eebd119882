"""Shards on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]


@pytest.fixture
def responses(run: Run, actor_section: dict[str, Any], waits: list[float], tmp_path: Path) -> Callable[..., Ended]:
    """Build answers to six prompts."""
    (tmp_path / "q.jsonl").write_text("".join(f'{{"prompt": "P {n}", "task": "safety"}}\n' for n in range(6)))
    assert run("build", "prompts", "--set", "prompts.sources=[{path: q.jsonl}]").status == 0
    (tmp_path / "r.yaml").write_text(json.dumps({"actor": actor_section}))
    return lambda *arguments: run("build", "responses", "--recipe", "r.yaml", *arguments)


def test_shards_are_listed_and_joined(responses: Callable[..., Ended], run: Run) -> None:
    for index in (2, 1):
        assert responses("--shard", f"{index}/2").status == 0
    states = [row["state"] for row in json.loads(run("list", "--json").out)["artifacts"]]
    assert states == ["complete", "shard 2 of 2", "shard 1 of 2"]
    joined = run("join", "responses@1.0.0", "responses@1.1.0", "--json")
    assert (joined.status, json.loads(joined.out)["rows"]) == (0, 6)
    assert json.loads(responses("--json").out)["artifact"] == json.loads(joined.out)["artifact"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shard", "3/2"), "I goes from 1 to N"),
        (("--shard", "two"), "write I/N"),
        (("--shard", "1/2", "--dry-run"), "--dry-run forecasts the whole build"),
    ],
)
def test_what_is_no_shard_builds_nothing(
    responses: Callable[..., Ended], run: Run, arguments: tuple[str, ...], words: str
) -> None:
    ended = responses(*arguments)
    assert ended.status != 0
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert len(json.loads(run("list", "--json").out)["artifacts"]) == 1


def test_shards_that_are_missing_are_named(responses: Callable[..., Ended], run: Run) -> None:
    assert responses("--shard", "2/3").status == 0
    ended = run("join", "responses@1.0.0")
    assert ended.status == 2
    assert "of 3 shards 1, 3 are missing" in ended.err
    assert "no complete responses" in run("show", "responses").err
