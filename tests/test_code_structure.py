"""The house keeps its order: small folders, no circles, one meaning a class name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "stairdata": ROOT / "stairdata",
    "stairdata_schemas": ROOT / "schemas" / "stairdata_schemas",
    "stairdata_training": ROOT / "training" / "stairdata_training",
    "stairdata_review": ROOT / "review" / "stairdata_review",
}
MOST_MODULES = 16
SEVERAL_MEANINGS: dict[str, str] = {}
"""A class name that several modules may define, and why."""


def modules() -> list[Path]:
    return [path for package in PACKAGES.values() for path in sorted(package.rglob("*.py"))]


def test_no_folder_is_crowded() -> None:
    folders: dict[Path, int] = defaultdict(int)
    for path in [*modules(), *(ROOT / "tests").rglob("*.py")]:
        folders[path.parent] += path.name != "__init__.py"
    assert {str(folder): count for folder, count in folders.items() if count > MOST_MODULES} == {}


def test_a_class_name_has_one_meaning() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))
            elif isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
                is_alias = target.id[0].isupper() and not target.id.isupper() and "_" not in target.id
                found[target.id] += [str(path.relative_to(ROOT))] if is_alias else []
    several = {name: places for name, places in found.items() if len(places) > 1}
    assert {name: places for name, places in several.items() if name not in SEVERAL_MEANINGS} == {}
    assert set(SEVERAL_MEANINGS) <= set(several), "a reason that nothing needs any more"


TAKE_NAMES_FOR_PATTERNS = {
    "scan_parquet",
    "read_parquet",
    "read_parquet_schema",
    "scan_ndjson",
    "read_ndjson",
    "read_csv",
    "scan_csv",
}
"""Functions of polars that read other files, or none, where a path holds `[` or `*`."""


def test_data_files_are_read_by_their_names_alone() -> None:
    """`scan_files` is the one place that hands paths to polars."""
    found = [
        f"{path.name}: {node.attr}"
        for path in [*modules(), *(ROOT / "benchmarks").glob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in TAKE_NAMES_FOR_PATTERNS
    ]
    assert found == ["artifacts.py: scan_parquet"]


SPLITS_MORE = {"splitlines", "readlines", "textwrap"}
"""What takes U+2028, U+0085, a form feed and others for the end of a line."""
LOGS = {
    "environment.py",
    "memory.py",
    "models.py",
    "processes.py",
    "rendering.py",
    "server_processes.py",
    "smollm2.py",
    "vllm_server.py",
}
"""Modules that split the output of other programs, or a library's message: no data."""


def test_only_a_line_feed_ends_a_line_of_data() -> None:
    found = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_method = isinstance(node, ast.Attribute) and node.attr in SPLITS_MORE
            is_module = isinstance(node, ast.Import) and any(name.name in SPLITS_MORE for name in node.names)
            found |= {path.name} if is_method or is_module else set()
    assert found <= LOGS


def test_imports_go_down_and_in_no_circle() -> None:
    """import-linter's contracts in pyproject.toml: layers, and no circle between siblings at any depth."""
    script = Path(sys.executable).parent / "lint-imports"
    ended = subprocess.run([script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "0 broken" in ended.stdout
