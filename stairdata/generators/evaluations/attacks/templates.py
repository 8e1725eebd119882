"""Published attacks out of a file: texts in which `{prompt}` stands for the prompt, replaced and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stairdata.generators.prompts.files import BrokenRow, read_rows
from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats import yaml_core
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import NOTE_BYTES

PLACEHOLDER = "{prompt}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def read_templates(path: Path) -> dict[str, str]:
    """Read templates by name: YAML {name: text}, or rows of `name` and `template`.

    Raises:
        InputError: a file that can't be read, a template without the placeholder, or a name that is none or there
            twice.
    """
    templates: dict[str, str] = {}
    for place, name, text in _yaml(path) if path.suffix.lower() in {".yaml", ".yml"} else _rows(path):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{place}: {quote(name)} is no name of an attack; use letters, digits, _ . - (64 at most)")
        if not isinstance(text, str) or PLACEHOLDER not in text:
            raise InputError(
                f"{place}: the template {quote(name)} has no {PLACEHOLDER} in its text, found {quote(text)}"
            )
        if name in templates:
            raise InputError(f"{place}: the template {quote(name)} is there twice; rename one")
        templates[name] = text
    if not templates:
        raise InputError(f"{path} has no templates")
    return templates


def fill(template: str, prompt: str) -> str:
    """Put a prompt in its place; braces in either text mean nothing more."""
    return template.replace(PLACEHOLDER, prompt)


def _yaml(path: Path) -> Iterator[tuple[str, Any, Any]]:
    try:
        data = yaml_core.load(read_text(path, NOTE_BYTES, "utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"the file of templates {path} does not exist") from error
    except (OSError, UnicodeDecodeError, yaml_core.UnreadableYamlError) as error:
        raise InputError(f"the file of templates {path} can't be read: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} has to be a mapping of names to templates, found {quote(data)}")
    yield from ((str(path), name, text) for name, text in data.items())


def _rows(path: Path) -> Iterator[tuple[str, Any, Any]]:
    for number, row in enumerate(read_rows(path), start=1):
        place = f"{path} row {number}"
        if isinstance(row, BrokenRow):
            raise InputError(f"{place} can't be read ({row.detail or row.rule}): {quote(row.raw)}")
        if missing := [column for column in ("name", "template") if column not in row]:
            raise InputError(f"{place} has no column {missing[0]!r} (its columns: {', '.join(map(str, row))})")
        yield place, row["name"], row["template"]
