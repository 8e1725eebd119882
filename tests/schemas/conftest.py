from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata_schemas import building, identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.quarantine import QuarantineRow


def prompt_row(text: str) -> dict[str, Any]:
    return {
        "prompt_id": identity.prompt_id(text),
        "prompt": text,
        "task": "safety",
        "source": "tests",
        "category": None,
        "reference_answer": None,
        "reference_is_safe": None,
    }


def make_prompts(*texts: str, wrong_task: tuple[str, ...] = ()) -> pl.DataFrame:
    """Prompts of the given texts; those in `wrong_task` break the schema."""
    rows = [prompt_row(text) | ({"task": "chatter"} if text in wrong_task else {}) for text in texts]
    return pl.DataFrame(rows, schema=polars_schema("prompts"))


def make_plan(**configuration: Any) -> BuildPlan:
    return BuildPlan("prompts", "tests/1", {"seed": 42} | configuration)


def make_artifact(
    root: Path,
    *frames: pl.DataFrame,
    plan: BuildPlan | None = None,
    refused: tuple[QuarantineRow, ...] = (),
    max_quarantine: float = 0.05,
    version: str | None = None,
    fresh: bool = False,
) -> Artifact:
    """Begin a build and finish it, or return the artifact that is there already."""
    build = begin_build(plan or make_plan(), root, version, fresh=fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        return build.finish(frames or [make_prompts("a", "b", "c")], refused, max_quarantine=max_quarantine)


def begin(root: Path, plan: BuildPlan | None = None, version: str | None = None, *, fresh: bool = False) -> Build:
    build = begin_build(plan or make_plan(), root, version, fresh=fresh)
    assert isinstance(build, Build)
    return build


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    # two processes a build would be most of the tests' time
    monkeypatch.setattr(building, "git_commit", lambda: None)


@pytest.fixture
def prompts() -> Callable[..., pl.DataFrame]:
    return make_prompts


@pytest.fixture
def plan() -> Callable[..., BuildPlan]:
    return make_plan


@pytest.fixture
def build() -> Callable[..., Artifact]:
    return make_artifact


@pytest.fixture(name="begin")
def begin_fixture() -> Callable[..., Build]:
    return begin


@pytest.fixture(scope="session")
def builder_script() -> Path:
    return Path(__file__).with_name("builder_process.py")


@pytest.fixture(scope="session")
def builder(builder_script: Path) -> dict[str, Any]:
    """The functions of `builder_process.py`, to run in this process what the other one did."""
    return runpy.run_path(str(builder_script))
