"""Fixtures of this room: structured reasoning out of the stub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.generators.structured_cot.plan import TeacherOptions
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact

if TYPE_CHECKING:
    from tests.conftest import StubServer


@pytest.fixture
def teach(
    stub_llm: StubServer, waits: list[float], make_prompts: Callable[[int], Artifact], tmp_path: Path
) -> Callable[..., Artifact | None]:
    """Build from so many prompts with the stub as teacher; sections of structured_cot and options by name."""

    def build(
        count: int,
        *,
        section: dict[str, Any] | None = None,
        prices: dict[str, Any] | None = None,
        prompts: Artifact | None = None,
        **options: Any,
    ) -> Artifact | None:
        teacher = {"base_url": stub_llm.base_url, "model": "actor", "retries": 2}
        given = {"concurrency": 4, **(section or {})}
        given["teacher"] = teacher | given.get("teacher", {})
        if isinstance(given.get("judge"), dict):
            given["judge"] = teacher | given["judge"]
        recipe = Recipe.model_validate({"structured_cot": given, "prices": prices or {}})
        source = prompts or make_prompts(count)
        settings: dict[str, Any] = {
            "root": tmp_path / "artifacts",
            "inputs": (str(source.folder),),
            "max_quarantine": 1.0,
        } | options
        asking = {each.name: settings.pop(each.name) for each in fields(TeacherOptions) if each.name in settings}
        return build_structured_cot(recipe, BuildOptions(**settings), TeacherOptions(**asking))

    return build
