"""Looking for tokens and keys in what is about to be published: rows, manifest, card.

Looked for are the shapes of common secrets (`stairdata_schemas.secrets.shapes`), and the values that this machine's own
environment holds (`stairdata_schemas.secrets.own`), as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl

from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import PublishError
from stairdata_schemas.kinds import row_schema
from stairdata_schemas.manifest import FileEntry
from stairdata_schemas.secrets.own import own_secrets, spellings
from stairdata_schemas.secrets.shapes import SHAPES, SecretShape, is_placeholder

SHOWN = 8
_BEGINNING = 4
_WITHIN = [part for shape in SHAPES.values() for part in shape.within]
_WITHOUT = [shape for shape in SHAPES.values() if not shape.within]
_NAMED = [(frozenset(map(str.lower, shape.within)), shape) for shape in SHAPES.values() if shape.within]


class SecretHit(NamedTuple):
    """Something like a secret."""

    where: str
    """File and row or field."""
    allow: str
    """What to give to --allow-secret."""
    what: str
    beginning: str
    """Its first characters alone, in brackets; nothing for this machine's own secrets."""


class TextScanner:
    """Looks for secrets in columns of text.

    Args:
        own: this machine's own secrets, each with the name of the variable that holds it.
    """

    def __init__(self, own: Mapping[str, str]) -> None:
        self._own = {spelled: name for value, name in own.items() for spelled in spellings(value)}

    def suspects(self, texts: pl.DataFrame) -> pl.DataFrame:
        """Return the rows whose `value` may hold one."""
        value = pl.col("value")
        has_own = value.str.contains_any(list(self._own)) if self._own else pl.lit(value=False)
        # what a shape always contains is found in all texts at once, ten times as fast as the shapes one by one
        has_part = value.str.contains_any(_WITHIN, ascii_case_insensitive=True)
        has_core = _has_any(shape.core or shape.pattern for shape in _WITHOUT)
        near = texts.filter(has_own | has_part | has_core)
        if near.is_empty():
            return near
        return near.filter(has_own | _has_any(shape.pattern for shape in _possible_shapes(near)))

    def find(self, text: str) -> tuple[str, str] | None:
        """Return what a text holds, and its beginning as far as it may be shown; None for nothing."""
        for value, name in self._own.items():
            if value in text:
                # of a short one the beginning would be half of it
                return f"secret of this environment ({name})", ""
        column = pl.Series([text])
        for what, shape in SHAPES.items():
            for match in column.str.extract_all(shape.pattern)[0]:
                if not is_placeholder(shape, match):
                    return what, f" ({match[:_BEGINNING]}…)"
        return None


class RowScanner:
    """Looks through rows as they are read."""

    def __init__(self, kind: str, own: Mapping[str, str]) -> None:
        self.keys = row_schema(kind).primary_key()
        self.scanner = TextScanner(own)
        self.hits: list[SecretHit] = []

    def __call__(self, entry: FileEntry, first: int, frame: pl.DataFrame) -> None:
        """Look through all text of some rows, nested text included."""
        texts = pl.concat(leaf.with_columns(column=pl.lit(name)) for name, leaf in _leaves(frame))
        told: set[tuple[str, int]] = set()
        for row, text, column in self.scanner.suspects(texts).iter_rows():
            found = None if (column, row) in told else self.scanner.find(text)
            if found is not None:
                told.add((column, row))
                key = "/".join(str(frame[name][row]) for name in self.keys)
                where = f"{entry.path} row {first + row} ({key}), column {column}"
                self.hits.append(SecretHit(where, key, *found))


def check_secrets(
    artifact: Artifact, rows: Iterable[SecretHit], texts: Mapping[str, str], allowed: Iterable[str] = ()
) -> None:
    """Refuse an artifact in whose rows, manifest or card something like a token or key stands.

    Args:
        artifact: what is about to be published.
        rows: what was found in its rows.
        texts: further texts by name, such as the card.
        allowed: names of rows, fields and files that were looked at and are fine.

    Raises:
        PublishError: names each place, and shows no more than the beginning.
    """
    accepted = set(allowed)
    own = own_secrets()
    documents = {**texts_of(artifact.manifest.model_dump(mode="json"), "manifest.json:"), **texts}
    hits = [*scan_texts(documents, own), *sorted(rows)]
    left = [hit for hit in hits if hit.allow not in accepted]
    if left:
        lines = [f"{hit.where}: {hit.what}{hit.beginning}" for hit in left[:SHOWN]]
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        raise PublishError(
            f"{artifact.reference} holds what looks like a secret in {'; '.join(lines)}{more}; take it out and build "
            f"again, or, if it is not a secret, repeat with --allow-secret {left[0].allow}"
        )


def scan_texts(texts: Mapping[str, str], own: Mapping[str, str]) -> Iterator[SecretHit]:
    """Look through named texts."""
    scanner = TextScanner(own)
    named = pl.DataFrame({"name": list(texts), "value": list(texts.values())}, {"name": pl.String, "value": pl.String})
    for name, text in scanner.suspects(named).iter_rows():
        if found := scanner.find(text):
            yield SecretHit(name, name, *found)


def _possible_shapes(texts: pl.DataFrame) -> list[SecretShape]:
    """Return the shapes of which some text has a part: to compile all takes longer than to look for a few."""
    parts = pl.col("value").str.extract_many(_WITHIN, ascii_case_insensitive=True, overlapping=True)
    found = set(texts.select(parts.list.explode().str.to_lowercase().unique()).to_series())
    return [*_WITHOUT, *(shape for within, shape in _NAMED if within & found)]


def _has_any(patterns: Iterable[str]) -> pl.Expr:
    return pl.any_horizontal([pl.col("value").str.contains(pattern) for pattern in patterns])


def _leaves(frame: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield every text column, however deep, as its path and a frame of row number and value."""
    rows = pl.Series("row", range(len(frame)), dtype=pl.Int64)
    for name in frame.columns:
        yield from _text_below(name, pl.DataFrame([rows, frame[name].alias("value")]))


def _text_below(path: str, frame: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    dtype = frame.schema["value"]
    if dtype == pl.String:
        yield path, frame.filter(pl.col("value").is_not_null())
    elif isinstance(dtype, pl.List):
        yield from _text_below(path, frame.explode("value"))
    elif isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            value = frame["value"].struct.field(field.name).alias("value")
            yield from _text_below(f"{path}.{field.name}", pl.DataFrame([frame["row"], value]))


def texts_of(value: Any, path: str) -> dict[str, str]:
    """Flatten the texts of a JSON value, keys included, by their path."""
    if isinstance(value, str):
        return {path.removesuffix("."): value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, str] = {}
    for key, inner in items:
        found |= texts_of(inner, f"{path}{key}.")
        if isinstance(value, dict):
            found |= {f"{path}{key} (its name)": str(key)}
    return found
