"""Artifacts to publish, and pushes that wait for nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata_schemas import building, identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import Parent, sha256_of_json
from stairdata_schemas.quarantine import QuarantineRow

Make = Callable[..., Artifact]


def prompt_rows(*texts: str, task: str = "safety") -> pl.DataFrame:
    rows = [{"prompt_id": identity.prompt_id(text), "prompt": text, "task": task, "source": "tests"} for text in texts]
    return pl.DataFrame(rows, schema=polars_schema("prompts"))


def pair_rows(count: int, note: str = "") -> pl.DataFrame:
    """Preference pairs, half of them on safety prompts."""
    rows = []
    for index in range(count):
        prompt, tree = f"Question {index}{note}?", f"{index:016x}"
        rows.append(
            {
                "pair_id": identity.pair_id(tree, 1, 2, "step"),
                "tree_id": tree,
                "prompt_id": identity.prompt_id(prompt),
                "prompt": prompt,
                "task": ("safety", "helpfulness")[index % 2],
                "chosen": f"<|Reasoning_step|>\nTitle: A:\ngood {index}\n<|/Reasoning_step|>",
                "rejected": f"<|Reasoning_step|>\nTitle: A:\nbad {index}\n<|/Reasoning_step|>",
                "prefix_length": 0,
                "depth": 1,
                "chosen_value": 1.0,
                "rejected_value": 0.25,
                "margin": 0.75,
                "chosen_visits": 4,
                "rejected_visits": 4,
                "chosen_is_terminal": False,
                "rejected_is_terminal": False,
                "chosen_node_id": 1,
                "rejected_node_id": 2,
                "granularity": "step",
            }
        )
    return pl.DataFrame(rows, schema=polars_schema("preference_pairs"))


def make_shards(folder: Path, frame: pl.DataFrame, count: int, kind: str = "preference_pairs") -> Artifact:
    """An artifact of several data files, where `SHARD_BYTES` is one."""
    build = begin_build(BuildPlan(kind, "tests/1", {"shards": count, "rows": repr(frame)}), folder / "artifacts")
    assert not isinstance(build, Artifact)
    with build:
        return build.finish(frame.iter_slices(-(-len(frame) // count)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "git_commit", lambda: None)
    monkeypatch.setattr("stairdata.hub.attempts.wait", lambda _: None)
    monkeypatch.setattr("stairdata.hub.client.LONGEST_WAIT", 0.0)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Build an artifact: prompts by default, `frame=` for rows of another kind."""

    def made(
        *texts: str,
        kind: str = "prompts",
        frame: pl.DataFrame | None = None,
        task: str = "safety",
        root: str = "artifacts",
        version: str | None = None,
        parents: tuple[Parent, ...] = (),
        refused: int = 0,
        **configuration: Any,
    ) -> Artifact:
        rows = frame if frame is not None else prompt_rows(*(texts or ("a", "b", "c")), task=task)
        if frame is not None and kind == "prompts" and "pair_id" in frame.columns:
            kind = "preference_pairs"
        given = {"license": "mit"} | configuration
        license = given.pop("license")
        plan = BuildPlan(
            kind,
            "tests/1",
            {"texts": sha256_of_json(texts), **given},
            parents=list(parents),
            license=license,
            inputs={"rows": "x"} if not parents else {},
        )
        build = begin_build(plan, tmp_path / root, version)
        if isinstance(build, Artifact):
            return build
        bad = [QuarantineRow("rows", number, "broken", "raw") for number in range(refused)]
        with build:
            return build.finish([rows], bad, max_quarantine=1.0)

    return made
