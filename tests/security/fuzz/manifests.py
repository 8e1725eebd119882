"""Manifests and cards as a stranger's repository or folder has them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from stairdata.hub.releases import changelog_line, differences, parse_manifest
from stairdata_schemas.artifacts import open_artifact, validate_artifact
from stairdata_schemas.cards import card as cards
from stairdata_schemas.cards.card import Card, CardConfig, render_card
from stairdata_schemas.cards.croissant import croissant
from stairdata_schemas.errors import PublishError
from stairdata_schemas.kinds import KINDS
from stairdata_schemas.manifest import MANIFEST_NAME, ORIGIN_NAME, Manifest, content_hash, read_manifest, read_origin
from tests.security.fuzz.damage import damaged, documents

FILE: dict[str, Any] = {"path": "data/train-00000.parquet", "sha256": "a" * 64, "bytes": 4, "rows": 1}
FIGURES = {
    "items": 3,
    "answers": 6,
    "verdict": {"alpha": 0.5, "pairwise": 0.75, "pairs": 4},
    "against_value": {"share": 0.5, "of": 3},
}
MANIFEST: dict[str, Any] = {
    "manifest_format": 1,
    "kind": "prompts",
    "version": "1.2.3",
    "schema_version": 1,
    "created_at": "2026-01-02T03:04:05Z",
    "stairdata_version": "0.1.0",
    "git_commit": None,
    "generator": "tests/1",
    "configuration": {"trees": {"score": "ucb", "c": 1.5, "judge": {"kind": "self"}}, "seed": 42},
    "fingerprint": "f" * 64,
    "content_hash": "c" * 64,
    "models": [{"role": "actor", "name": "m", "revision": "main", "tokenizer_hash": None}],
    "seeds": {"build": 42},
    "parents": [{"kind": "prompts", "version": "1.0.0", "content_hash": "d" * 64, "repo": "a/b", "commit": "e" * 40}],
    "license": "apache-2.0",
    "rows": 1,
    "outcomes": {"ok": 3},
    "quarantine": {"not_json": 1},
    "usage": {"requests": 3, "prompt_tokens": 4, "completion_tokens": 5, "cost": 0.1},
    "seconds": 1.5,
    "notes": ["a note"],
    "details": {"agreement": {**FIGURES, "by_task": {"safety": FIGURES}, "by_depth": {"1": FIGURES}}},
    "files": [FILE],
}
ORIGIN = {"repo": "a/b", "commit": "e" * 40, "tag": "v1.2.3", "config": None}
MANIFESTS = damaged(documents(st.sampled_from(sorted(KINDS)).map(lambda kind: {**MANIFEST, "kind": kind})))
ORIGINS = damaged(documents(st.just(ORIGIN)))


def read_any_manifest(data: bytes, folder: Path) -> None:
    """Do with a manifest what commands do with it before they read a row."""
    (folder / MANIFEST_NAME).write_bytes(data)
    (folder / "data").mkdir(exist_ok=True)
    (folder / FILE["path"]).write_bytes(b"PAR1")
    found = parse_manifest(data)
    if found is not None:
        _use(found)
    _use(read_manifest(folder))
    artifact = open_artifact(folder)
    validate_artifact(artifact, rows=False)


def _use(manifest: Manifest) -> None:
    honest = Manifest.model_validate(MANIFEST)
    for old, new in ((honest, manifest), (manifest, honest), (manifest, manifest)):
        differences(old, new)
        changelog_line("v1.2.3", new, old)
    content_hash(manifest.files)
    render_card(manifest)
    croissant(manifest, "a/b", "https://huggingface.co/datasets/a/b")
    manifest.model_dump_json()


def read_any_origin(data: bytes, folder: Path) -> None:
    """Read the note beside an artifact that was pulled."""
    (folder / ORIGIN_NAME).write_bytes(data)
    read_origin(folder)


HEAD: dict[str, Any] = {
    "license": "mit",
    "tags": ["stairdata", "mine"],
    "configs": [{"config_name": "prompts", "default": True, "data_files": [{"split": "train", "path": "data/*"}]}],
    "dataset_info": {"config_name": "prompts", "features": [{"name": "prompt", "dtype": "large_string"}]},
    "mine": {"a": [1, 2.5, "x"], "b": None},
}


def _bomb(first: str, more: str) -> str:
    """Repeat by alias what repeats by alias, eight times over."""
    return f"[&a {first}" + "".join(more.format(old, new) for old, new in pairwise("abcdefgh")) + "]"


BOMB = _bomb("[x]", ", &{1} [" + ", ".join(["*{0}"] * 9) + "]")
MERGE_BOMB = _bomb("{x: 1}", ", &{1} {{<<: [" + ", ".join(["*{0}"] * 9) + "], {1}: 1}}")
YAML_VALUES = (
    "&a [*a]", "&a {b: *a}", "*a", "&a 1", "{<<: {a: 1}, a: 2}", "{<<: [1]}", "{? [1] : 2}", "{? {a: 1} : 2}",
    "!!set {a, b}", "!!python/object/apply:os.system [x]", "!!binary x", "!!timestamp x", "!!int x", "!!float x",
    "!!null x", "!!bool x", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str [a]", "!!map [a]", "!!seq {a: 1}", "! a",
    "!<tag:a> b", "!!merge x", "0x1F", "0o17", "1_000", "1:30", ".inf", "-.inf", ".nan", "2026-01-01", "yes", "~",
    "'", '"', "|", ">", "@", "`", "%", BOMB, MERGE_BOMB,
)  # fmt: skip
"""What YAML has beyond JSON."""
BODY = render_card(Manifest.model_validate(MANIFEST)).partition("\n---\n")[2]
_MARKED = re.sub(r"(: begin [^\n]*\n)", r"\1mine\n", BODY)
_CHANGELOG = "\n## Changelog\n\n- **v1.2.3** (2026-01-02): 1 rows\n"
BODIES = st.sampled_from(["", BODY, _MARKED, BODY + _CHANGELOG, _MARKED + BODY, "# Theirs\n"])


def _card(head: bytes, body: str) -> bytes:
    return b"---\n" + head + b"\n---\n" + body.encode()


def _blocks(head: bytes) -> bytes:
    """Write a head's keys on lines of their own, where it is sound."""
    try:
        return yaml.safe_dump(yaml.safe_load(head), sort_keys=False).encode()
    except Exception:  # noqa: BLE001 - whatever PyYAML stumbles over stays as it is
        return head


_HEADS = documents(st.just(HEAD), YAML_VALUES)
_LINES = st.builds(
    lambda key, value: yaml.safe_dump(HEAD, sort_keys=False).encode() + f"{key}: {value}\n".encode(),
    st.sampled_from(["more", "mine", "tags", '"a b"', "? c", "!!int d"]),
    st.sampled_from(YAML_VALUES),
)
CARDS = damaged(st.builds(_card, damaged(_HEADS | _LINES), BODIES))


def read_any_card(data: bytes, folder: Path) -> None:
    """Take from a card what a pull and a push take from it, and write it anew."""
    text = data.decode("utf-8", "replace")
    license = cards.read_head(text).get("license")
    cards.default_config(text)
    manifest = Manifest.model_validate(MANIFEST)
    again = cards.render(
        Card(
            [CardConfig(manifest, manifest.kind)],
            manifest.kind,
            license=license if isinstance(license, str) else None,
            dataset_info=cards.read_head(text).get("dataset_info"),
            changelog=cards.read_changelog(text),
            kept=cards.user_text(text) or {"notes": cards.foreign_text(text)},
            extra=cards.user_lines(text),
        )
    )
    cards.check_head(text, "README.md")
    try:
        cards.check_head(again, "the card that was written anew")
    except PublishError as error:
        raise AssertionError(f"a card that can be read becomes one that can't: {error}") from error
