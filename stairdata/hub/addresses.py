"""Where things are on the Hub: references, tags, and the folder of a config in a repository.

One kind a repository: `data/` and `manifest.json` at its root, tags `vX.Y.Z`. Several kinds: `CONFIG/data`,
`CONFIG/manifest.json`, tags `CONFIG-vX.Y.Z`. README.md is one for all. Views that are made of the rows are in
`views/NAME/` beside `data/`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stairdata_schemas.artifacts import Version, parse_version
from stairdata_schemas.errors import UsageError, quote

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(rf"({_NAME}/{_NAME})(?:@(.+))?", re.ASCII)
_CONFIG = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*", re.ASCII)
_NUMBER = r"(?:0|[1-9]\d{0,99})"  # as many digits as `parse_version` reads
_TAG = re.compile(rf"(?:(.+)-)?v({_NUMBER}\.{_NUMBER}\.{_NUMBER})", re.ASCII)
_RESERVED = {"data", "plots", "quarantine", "default"}
VIEWS = ("chat", "paths")
_OF_RELEASES = ("data/", "plots/", *(f"views/{name}/" for name in VIEWS))


class Address(NamedTuple):
    """A dataset on the Hub, at a revision: tag, branch, commit, or none for the highest version."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


class ConfigPath(NamedTuple):
    """A config's place in a repository; without a config the root."""

    config: str | None = None

    @property
    def prefix(self) -> str:
        return f"{self.config}/" if self.config else ""

    def tag(self, version: Version | str) -> str:
        return f"{self.config}-v{version}" if self.config else f"v{version}"

    def view_folder(self, view: str) -> str:
        return f"{self.prefix}views/{view}/"

    def view_config(self, view: str) -> str:
        """Return the name by which `datasets` loads a view; no config of ours has two dashes in a row."""
        return f"{self.config}--{view}" if self.config else view

    def holds(self, path: str) -> bool:
        """Return whether a file of a repository belongs to this place."""
        inside = path.removeprefix(self.prefix)
        if self.config:
            return path.startswith(self.prefix)
        return inside.startswith(_OF_RELEASES) or inside in {"manifest.json", "croissant.json"}


class TagName(NamedTuple):
    """What a release's tag says."""

    place: ConfigPath
    version: Version


def parse_address(text: str) -> Address | None:
    """Read `org/name[@REVISION]`; None for anything else."""
    match = _ADDRESS.fullmatch(text)
    if match is None or any(bad in match[1] for bad in ("--", "..")):
        return None
    return Address(match[1], match[2])


def parse_repo(text: str) -> str:
    """Read `org/name`.

    Raises:
        UsageError: anything else.
    """
    address = parse_address(text)
    if address is None or address.revision is not None:
        raise UsageError(f"{quote(text)} is not a repository name; write --repo org/name")
    return address.repo


def parse_config(text: str) -> str:
    """Read the name of a config.

    Raises:
        UsageError: a name that can't be a folder and a part of a tag.
    """
    if not is_config(text):
        raise UsageError(
            f"{quote(text)} can't be a config; write letters, digits and _, with . or - between them, such as trees"
        )
    return text


def is_config(name: str) -> bool:
    """Return whether a name can be a config: it becomes a folder, here and on the Hub."""
    return _CONFIG.fullmatch(name) is not None and name not in _RESERVED and len(name) <= 60


def parse_tag(tag: str) -> TagName | None:
    """Read `vX.Y.Z` or `CONFIG-vX.Y.Z`; None for a tag that is no release."""
    match = _TAG.fullmatch(tag)
    if match is None or (match[1] is not None and not is_config(match[1])):
        return None
    return TagName(ConfigPath(match[1]), parse_version(match[2]))
