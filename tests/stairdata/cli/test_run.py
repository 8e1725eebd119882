"""`stairdata run`, as far as it starts no server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.stairdata.cli.conftest import Ended
from tests.stairdata.pipeline.conftest import write_inputs


def test_a_recipe_is_previewed_and_a_wrong_one_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(write_inputs(tmp_path)))
    ended = run("run", "r.yaml", "--folder", "there", "--dry-run", "--set", "rounds.count=1")
    assert ended.status == 0
    assert "round 1: train dpo: unknown before the pairs of round 1" in ended.out
    assert "round 2" not in ended.out
    assert json.loads(run("run", "r.yaml", "--dry-run", "--json").out)[0]["stage"] == "prompts"
    ended = run("run", "r.yaml", "--folder", "there", "--set", "sft.model=null")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "error: run needs a model to start from: give sft.model (a folder or Hub id)\n"
    assert not (tmp_path / "there").exists()
