"""What all pages share: the jinja environment, and how data gets into a page without becoming markup."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jinja2


@cache
def environment() -> jinja2.Environment:
    """Return the environment of this package's templates: every value is escaped, a missing one is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata.report"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def script_json(value: Any) -> str:
    """Write JSON that can't end the script element it stands in, or begin a comment there."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
