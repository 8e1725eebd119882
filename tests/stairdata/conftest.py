"""Fixtures of this room: retries that take no time, prompts to build from, and recipes that point at the stub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.generators.prompts.build import build_prompts
from stairdata.llm.budget import Budget
from stairdata.llm.window import Window
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact

if TYPE_CHECKING:
    from tests.conftest import StubServer


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that retries would have waited; they go on at once."""
    asked: list[float] = []

    async def sleep(self: Budget, seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(Budget, "sleep", sleep)
    monkeypatch.setattr(Window, "pause", lambda *_: None)
    return asked


@pytest.fixture
def make_prompts(tmp_path: Path) -> Callable[[int], Artifact]:
    """Build a prompts artifact of some rows, half safety, half helpfulness."""

    def make(count: int) -> Artifact:
        source = tmp_path / f"prompts-{count}.jsonl"
        tasks = ("safety", "helpfulness")
        rows = [
            {"prompt": f"Question {index}: naïve 👩🏽‍🚀?", "task": tasks[index % 2], "reference_answer": "water plan"}
            for index in range(count)
        ]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe = Recipe.model_validate({"prompts": {"sources": [{"path": str(source)}]}})
        return build_prompts(recipe, BuildOptions(root=tmp_path / "artifacts"))

    return make


@pytest.fixture
def prompts_of(tmp_path: Path) -> Callable[[list[str]], Artifact]:
    """Build a prompts artifact of some texts."""

    def make(texts: list[str]) -> Artifact:
        source = tmp_path / "texts.jsonl"
        rows = [{"prompt": text, "task": "safety", "reference_answer": "no"} for text in texts]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe = Recipe.model_validate({"prompts": {"sources": [{"path": str(source)}]}})
        return build_prompts(recipe, BuildOptions(root=tmp_path / "artifacts"))

    return make


@pytest.fixture(scope="session")
def _further_stubs(stub_process: StubServer) -> Iterator[list[StubServer]]:
    servers = [type(stub_process)(), type(stub_process)()]
    for server in servers:
        server.tokenizer = stub_process.tokenizer
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def stubs(stub_llm: StubServer, _further_stubs: list[StubServer]) -> list[StubServer]:
    """The stub, and two further servers of its model."""
    for server in _further_stubs:
        server.start()
        server.reset()
    return [stub_llm, *_further_stubs]


@pytest.fixture
def actor_section(stub_llm: StubServer, tokenizer_folder: Path) -> dict[str, Any]:
    """The recipe's words on the stub as actor."""
    return {"base_url": stub_llm.base_url, "model": "actor", "tokenizer": str(tokenizer_folder)}
