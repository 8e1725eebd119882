"""Write the two pages that come from the code: docs/schema.md and docs/recipe.md.

    python docs/generate.py

A test compares the pages with what this would write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import dataframely as dy
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stairdata.recipe import Endpoint
from stairdata.stages import FullRecipe
from stairdata_schemas.cards.card import DESCRIPTIONS
from stairdata_schemas.kinds import KINDS, SCHEMA_VERSION, json_schema

Row = tuple[str, ...]
ALIKE = {"prm_pairs": "preference_pairs", "dpo": "sft", "prm": "sft"}
"""Sections most of whose keys are those of another one."""
SCHEMA_HEAD = f"""# What is in each artifact

The columns of every kind of artifact, schema version {SCHEMA_VERSION}. `nodes[].step` is a field of each element of the
list `nodes`. `stairdata schema KIND` prints the same as JSON Schema, and the README.md of every artifact has its table.
A build and `stairdata validate` check types, ranges and the rules named below each table. This page is written by
`docs/generate.py` from `schemas/stairdata_schemas/kinds.py`.
"""
RECIPE_HEAD = """# What a recipe can say

A recipe is one YAML file with a section for each stage; a command reads the sections that it needs. Every key has a
default, and an unknown key is an error that names the nearest known one. `--set section.key=value` goes over the file.
`sources[].path` is a key of each element of the list `sources`, `teachers.NAME.model` one under a name of your own.
Outside the sections stands `seed` (by default 42), which fixes all randomness of ours. This page is written by
`docs/generate.py` from the docstrings of the recipe's classes.
"""


def schema_page() -> str:
    """Return the columns and rules of all kinds."""
    return "\n".join([SCHEMA_HEAD, *map(_kind, KINDS)])


def _kind(kind: str) -> str:
    schema = KINDS[kind]
    keys = ", ".join(f"`{key}`" for key in schema.primary_key())
    rows = [row for name, column in schema.columns().items() for row in _columns(name, column)]
    named = [rule for rule in json_schema(kind)["x-stairdata-rules"] if "|" not in rule and rule != "primary_key"]
    rules = f"\nRules over several columns: {', '.join(f'`{rule}`' for rule in named)}.\n" if named else ""
    table = _table(("column", "type", "may be null", "meaning"), rows)
    return f"## `{kind}`\n\n{DESCRIPTIONS[kind]} No two rows are alike in {keys}.\n\n{table}{rules}"


def _columns(name: str, column: Any) -> Iterator[Row]:
    inner = column.inner if isinstance(column, dy.List) else None
    kind = f"list of {_type(inner)}" if inner is not None else _type(column)
    yield f"`{name}`", kind, "yes" if column.nullable else "no", column.description or ""
    if isinstance(inner, dy.Struct):
        for field, below in inner.inner.items():
            yield from _columns(f"{name}[].{field}", below)


def _type(column: Any) -> str:
    return type(column).__name__.lower()


def recipe_page() -> str:
    """Return all keys of a recipe with their defaults and meanings."""
    sections = [name for name, field in FullRecipe.model_fields.items() if _section(field) is not None]
    return "\n".join([RECIPE_HEAD, *map(_stage, sections)])


def _stage(name: str) -> str:
    field, section = FullRecipe.model_fields[name], _section_named(name)
    words = _one_line(field.description or section.__doc__)
    rows = _keys(section, "NAME." if _is_a(field, dict) else "")
    if name in ALIKE:
        base = _section_named(ALIKE[name])
        other, absent = set(_keys(base)), [f"`{key}`" for key in base.model_fields if key not in section.model_fields]
        without = f", without {' and '.join(absent)}" if absent else ""
        words += f" Its keys are those of `{ALIKE[name]}`{without}, and with these differences:"
        rows = (row for row in rows if row not in other)
    return f"## `{name}`\n\n{words}\n\n{_table(('key', 'default', 'meaning'), list(rows))}"


def _section_named(name: str) -> type[BaseModel]:
    section = _section(FullRecipe.model_fields[name])
    assert section is not None
    return section


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[Row]:
    for name, field in section.model_fields.items():
        inner, key, words = _section(field), f"{prefix}{name}", _one_line(field.description)
        if inner is None or f"{name}." in prefix or name == "decontaminate":
            yield f"`{key}`", _default(field), words
            continue
        is_model = issubclass(inner, Endpoint)
        yield f"`{key}`", _default(field), f"{words} It takes the keys of `actor`, too." if is_model else words
        below = f"{key}[]." if _is_a(field, list) else f"{key}.NAME." if _is_a(field, dict) else f"{key}."
        rows = _keys(inner, below)
        yield from (row for row in rows if not (is_model and row[0].strip("`").split(".")[-1] in Endpoint.model_fields))


def _is_a(field: FieldInfo, container: type) -> bool:
    return isinstance(field.default, container)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section in a field: by itself, in a list, under names, or in place of null."""
    return next(_sections(field.annotation), None)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _default(field: FieldInfo) -> str:
    if isinstance(field.default, BaseModel):
        return ""
    shown = yaml.safe_dump(field.default, default_flow_style=True, width=200).removesuffix("...\n").strip()
    return f"`{shown}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PAGES = {"schema.md": schema_page, "recipe.md": recipe_page}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (Path(__file__).parent / page).write_text(text(), encoding="utf-8")
