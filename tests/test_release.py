"""What a release says of itself; `.ci/run` builds the wheel and uses it in an empty environment."""

from __future__ import annotations

import importlib.util
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import yaml

from stairdata.cli.quickstart import EXTRAS, check_extras
from stairdata_schemas.errors import UsageError

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_licence_and_keywords_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_quickstart_asks_for_all_missing_extras_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"trl", "vllm", "uvicorn"}
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in absent else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(UsageError, match=r"trl; vllm: vllm; serve: uvicorn\).*stairdata\[training,vllm,serve\]"):
        check_extras()


def test_extras_that_the_quickstart_names_bring_the_packages() -> None:
    for extra, names in EXTRAS.items():
        listed = " ".join(PROJECT["optional-dependencies"][extra])
        assert [name for name in names if name not in listed] == []
