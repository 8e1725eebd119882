"""The words that models are asked in: the versioned templates of this package."""

from __future__ import annotations

from functools import cache

import jinja2


@cache
def find_template(name: str) -> jinja2.Template:
    """Return a template by its file's name, without `.jinja`; a variable that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata.generators"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model; values are never parsed as templates
    )
    return environment.get_template(f"{name}.jinja")
