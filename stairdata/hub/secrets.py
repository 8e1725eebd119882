"""Looking for tokens and keys in what is about to be published: rows, manifest, card.

The patterns are the documented shapes of common tokens, each with a fixed beginning, so that gigabytes are scanned
at the speed of a literal search. Values of the environment's own secrets are looked for as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl

from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import PublishError
from stairdata_schemas.kinds import row_schema
from stairdata_schemas.manifest import FileEntry

PATTERNS: Mapping[str, str] = {
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "Hugging Face organisation token": r"\bapi_org_[A-Za-z0-9]{30,}",
    "OpenAI or Anthropic key": r"\bsk-(?:ant-|proj-|svcacct-|or-)?[A-Za-z0-9_-]{20,}",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{40,}",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "AWS key": r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    "Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "Stripe key": r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{20,}",
    "PyPI token": r"\bpypi-AgEI[0-9A-Za-z_-]{40,}",
    "npm token": r"\bnpm_[0-9A-Za-z]{36}",
    "Groq key": r"\bgsk_[0-9A-Za-z]{40,}",
    "NVIDIA key": r"\bnvapi-[0-9A-Za-z_-]{40,}",
    "Replicate token": r"\br8_[0-9A-Za-z]{36,}",
    "SendGrid key": r"\bSG\.[0-9A-Za-z_-]{20,}\.[0-9A-Za-z_-]{20,}",
    "JSON web token": r"\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}",
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "password in a URL": r"://[^/\s:@]{1,64}:[^/\s:@]{6,128}@[A-Za-z0-9]",
}
SHOWN = 8
_TELLING_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


class SecretHit(NamedTuple):
    """Something like a secret."""

    where: str
    """File and row or field."""
    allow: str
    """What to give to --allow-secret."""
    what: str
    beginning: str
    """Its first characters alone."""


class RowScanner:
    """Looks through rows as they are read."""

    def __init__(self, kind: str, own: Iterable[str]) -> None:
        self.keys = row_schema(kind).primary_key()
        self.patterns = _patterns(own)
        self.anything = "|".join(f"(?:{pattern})" for pattern in self.patterns.values())
        self.hits: list[SecretHit] = []

    def __call__(self, entry: FileEntry, first: int, frame: pl.DataFrame) -> None:
        """Look through all text of some rows, nested text included."""
        for column, leaf in _leaves(frame):
            found = leaf.filter(pl.col("value").str.contains(self.anything))
            for row, text in found.unique("row", maintain_order=True).iter_rows():
                key = "/".join(str(frame[name][row]) for name in self.keys)
                where = f"{entry.path} row {first + row} ({key}), column {column}"
                self.hits.append(_hit(where, key, text, self.patterns))


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
    documents = {**_strings(artifact.manifest.model_dump(mode="json"), "manifest.json:"), **texts}
    hits = [*scan_texts(documents, own), *sorted(rows)]
    left = [hit for hit in hits if hit.allow not in accepted]
    if left:
        lines = [f"{hit.where}: {hit.what} ({hit.beginning}…)" for hit in left[:SHOWN]]
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        raise PublishError(
            f"{artifact.reference} holds what looks like a secret in {'; '.join(lines)}{more}; take it out and build "
            f"again, or, if it is not a secret, repeat with --allow-secret {left[0].allow}"
        )


def own_secrets() -> list[str]:
    """Return the values of this environment's own secrets: what looks like one by its name, and the Hub token."""
    from huggingface_hub import get_token

    named = [value for name, value in os.environ.items() if _TELLING_NAME.search(name)]
    return sorted({value for value in (*named, get_token() or "") if len(value) >= 16 and "/" not in value})


def scan_texts(texts: Mapping[str, str], own: Iterable[str] = ()) -> Iterator[SecretHit]:
    """Look through named texts."""
    patterns = _patterns(own)
    for name, text in texts.items():
        for what, pattern in patterns.items():
            if match := re.search(pattern, text):
                yield SecretHit(name, name, what, match[0][:4])


def _hit(where: str, key: str, text: str, patterns: Mapping[str, str]) -> SecretHit:
    for what, pattern in patterns.items():
        if match := re.search(pattern, text):
            return SecretHit(where, key, what, match[0][:4])
    return SecretHit(where, key, "a secret", text[:0])


def _patterns(own: Iterable[str]) -> dict[str, str]:
    literal = [re.escape(value).replace("\\-", "-").replace("\\ ", " ") for value in own]
    return {**PATTERNS, **({"secret of this environment": "|".join(literal)} if literal else {})}


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


def _strings(value: Any, path: str) -> dict[str, str]:
    """Flatten the texts of a JSON value, keys included, by their path."""
    if isinstance(value, str):
        return {path.removesuffix("."): value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, str] = {}
    for key, inner in items:
        found |= _strings(inner, f"{path}{key}.")
        if isinstance(value, dict):
            found |= {f"{path}{key} (its name)": str(key)}
    return found
