"""The words that models are asked in: versioned templates, beside the code that asks."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import jinja2

from stairdata_schemas.errors import RecipeError
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import NOTE_BYTES


@cache
def find_template(package: str, name: str) -> jinja2.Template:
    """Return a template of a package by its file's name, without `.jinja`; a variable that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model; values are never parsed as templates
    )
    return environment.get_template(f"{name}.jinja")


@cache
def packaged_source(package: str, name: str) -> str:
    """Return the text of a template of a package by its file's name, without `.jinja`."""
    return (resources.files(package) / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def source_of(path: Path) -> str:
    """Return the text of a user's own template.

    Raises:
        RecipeError: it can't be read.
    """
    try:
        return read_text(path, NOTE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the template {path} can't be read: {error}") from error
