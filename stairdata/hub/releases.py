"""The releases of a repository: what each holds, and what changed from one to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from stairdata.hub.addresses import ConfigPath
from stairdata.hub.client import Repository, read
from stairdata_schemas.artifacts import Version, parse_version
from stairdata_schemas.cards.card import inline
from stairdata_schemas.errors import HubError, UsageError
from stairdata_schemas.formats.limits import MANIFEST_BYTES, TooLargeError, check_json
from stairdata_schemas.formats.unique_keys import KeyTwiceError, check_keys
from stairdata_schemas.kinds import KINDS
from stairdata_schemas.manifest import MANIFEST_NAME, Manifest


class Release(NamedTuple):
    """A tag of a repository, and the manifest under it."""

    tag: str
    place: ConfigPath
    version: Version
    commit: str
    manifest: Manifest | None
    """None where there is none that this release of stairdata reads."""
    changes: list[str]
    """What is different from the version before it in the same place."""


def releases(repository: Repository) -> list[Release]:
    """Read all releases of a repository, newest first in each place.

    Raises:
        HubError: the Hub can't be reached, or refuses.
    """
    found: list[Release] = []
    before: dict[ConfigPath, Manifest | None] = {}
    for tag, (place, version) in _ordered(repository):
        commit = repository.tags[tag]
        manifest = manifest_at(repository.name, place, commit)
        earlier = before.get(place)
        changes = differences(earlier, manifest) if earlier and manifest else []
        found.append(Release(tag, place, version, commit, manifest, changes))
        before[place] = manifest or earlier
    newest_first = sorted(found, key=lambda release: release.version, reverse=True)
    return sorted(newest_first, key=lambda release: release.place.config or "")


def _ordered(repository: Repository) -> Iterator[tuple[str, tuple[ConfigPath, Version]]]:
    yield from sorted(repository.releases().items(), key=lambda item: item[1].version)


def manifest_at(repo: str, place: ConfigPath, commit: str) -> Manifest | None:
    """Read the manifest of a place at a commit; None if it is missing or not one of ours."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        content = read(repo, place.prefix + MANIFEST_NAME, commit, MANIFEST_BYTES)
    except HubError as error:
        if isinstance(error.__context__, EntryNotFoundError):
            return None
        raise
    return parse_manifest(content)


def parse_manifest(content: bytes) -> Manifest | None:
    """Read a manifest's text; None if it is not one of ours."""
    try:
        check_json(content.decode("utf-8", "replace"), MANIFEST_NAME, "the manifest")
        check_keys(content)
        manifest = Manifest.model_validate_json(content)
        parse_version(manifest.version)
    except (ValidationError, UsageError, KeyTwiceError, TooLargeError):
        return None
    return manifest if manifest.kind in KINDS else None


def previous(repository: Repository, place: ConfigPath, version: Version) -> str | None:
    """Return the tag of the highest lower version in a place."""
    lower = [(name.version, tag) for tag, name in repository.releases().items() if name.place == place]
    return max((entry for entry in lower if entry[0] < version), default=(None, None))[1]


def differences(old: Manifest, new: Manifest) -> list[str]:
    """Say in a few words each what changed between two versions."""
    found = []
    if old.kind != new.kind:
        found.append(f"kind {old.kind} -> {new.kind}")
    if old.schema_version != new.schema_version:
        found.append(f"schema {old.schema_version} -> {new.schema_version}")
    if old.content_hash == new.content_hash:
        found.append("same rows")
    else:
        found.append(f"rows {old.rows} -> {new.rows}" if old.rows != new.rows else "other rows, as many")
    if old.generator != new.generator:
        found.append(f"generator {old.generator} -> {new.generator}")
    keys = sorted(_changed(old.configuration, new.configuration))
    if keys:
        found.append("configuration: " + ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else ""))
    if _names(old) != _names(new):
        found.append(f"models {', '.join(_names(old)) or 'none'} -> {', '.join(_names(new)) or 'none'}")
    if {parent.content_hash for parent in old.parents} != {parent.content_hash for parent in new.parents}:
        found.append("other parents")
    if old.license != new.license:
        found.append(f"licence {old.license or 'unknown'} -> {new.license or 'unknown'}")
    return found


def _names(manifest: Manifest) -> list[str]:
    return [f"{model.role} {model.name} {model.revision or ''}".strip() for model in manifest.models]


def _changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}"


def changelog_line(tag: str, manifest: Manifest, earlier: Manifest | None) -> str:
    """Write the line of a card's changelog."""
    changes = "; ".join(differences(earlier, manifest)) if earlier else "first release"
    facts = f"{manifest.rows} rows, schema {manifest.schema_version}, data {manifest.content_hash[:16]}"
    return f"- **{tag}** ({manifest.created_at.date().isoformat()}): {facts}; {inline(changes)}"
