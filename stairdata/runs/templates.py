"""The words that models are asked in: versioned templates, beside the code that asks."""

from __future__ import annotations

from functools import cache

import jinja2


@cache
def find_template(package: str, name: str) -> jinja2.Template:
    """Return a template of a package by its file's name, without `.jinja`; a variable that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model; values are never parsed as templates
    )
    return environment.get_template(f"{name}.jinja")
