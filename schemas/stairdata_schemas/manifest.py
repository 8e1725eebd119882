"""The manifest: what an artifact holds, how it was made, and from what.

`manifest.json` is written last, so its presence means that the artifact is complete. The fingerprint decides
whether a build is already done; it covers what can change rows and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import ArtifactError
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import MANIFEST_BYTES, NOTE_BYTES, TooLargeError, check_json
from stairdata_schemas.formats.unique_keys import KeyTwiceError, check_keys

MANIFEST_NAME = "manifest.json"
ORIGIN_NAME = "hub.json"
MANIFEST_FORMAT = 1
ACTOR = "actor"


SHARD = "shard"
"""Key of a manifest's details where the artifact is one shard of a build, of which it says what it takes to join it."""


class Parent(BaseModel):
    """An artifact that rows were made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    version: str
    content_hash: str
    repo: str | None = None
    """Hub repository, if the parent came from there."""
    commit: str | None = None
    """Commit sha of that repository."""
    license: str | None = None
    """The parent's licence, as the Hub names it; null where it is unknown."""


class Origin(BaseModel):
    """Where an artifact stands on the Hub; kept in hub.json beside its manifest, which never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str
    commit: str
    tag: str | None = None
    config: str | None = None
    """The config's folder in the repository; null where the artifact lies at its root."""


class ModelIdentity(BaseModel):
    """A model that took part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    """actor, teacher, judge, prm."""
    name: str
    """The name in the recipe; a folder is named by its last part alone, since paths don't travel."""
    revision: str | None = None
    """Hub revision, or the hash of a local folder's weights."""
    tokenizer_hash: str | None = None
    dtype: str | None = None
    """Number format of a process reward model's arithmetic."""

    def noted(self) -> Json:
        """Return what `details` say of the actor."""
        return self.model_dump(exclude={"role"}, exclude_none=True)


class FileEntry(BaseModel):
    """One file under data/."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """Path inside the artifact, with forward slashes."""
    sha256: str
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0)


class BuildUsage(BaseModel):
    """What the requests of a build used up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Those of the completion tokens that were thoughts, as far as servers count them."""
    cost: float | None = None
    """In the currency of the recipe's price table; null where prices are unknown."""

    @model_serializer(mode="wrap")
    def _as_before_where_nothing_was_thought(self, dump: SerializerFunctionWrapHandler) -> Json:
        # releases before 0.2 refuse a manifest with a key that they don't know
        found: Json = dump(self)
        if not self.reasoning_tokens:
            found.pop("reasoning_tokens", None)
        return found


class Manifest(BaseModel):
    """Everything that is to be known about an artifact without reading its rows."""

    model_config = ConfigDict(extra="forbid")

    manifest_format: int = MANIFEST_FORMAT
    kind: str
    version: str
    schema_version: int
    created_at: datetime
    stairdata_version: str
    git_commit: str | None = None
    generator: str
    """Name of the generator, with its own version: it enters the fingerprint."""
    configuration: Json
    """The generator's whole resolved configuration, secrets left out."""
    fingerprint: str
    content_hash: str
    models: list[ModelIdentity] = []
    seeds: dict[str, int] = {}
    parents: list[Parent] = []
    license: str | None = None
    """The strictest licence of what it was made from, as the Hub names it; null where one is unknown."""
    rows: int
    outcomes: dict[str, int] = {}
    """How the units of work ended, by name of the outcome."""
    quarantine: dict[str, int] = {}
    """Refused rows by the rule they broke."""
    usage: BuildUsage = BuildUsage()
    seconds: float | None = None
    """Wall time of the run that finished the build."""
    notes: list[str] = []
    """Deviations from the paper and warnings that a user of the data should know."""
    details: Json = {}
    """Figures of the generator's own, such as the mixture of pairs."""
    files: list[FileEntry]

    @property
    def actor(self) -> ModelIdentity | None:
        """The model that wrote the steps of these trees, or of the trees that these pairs come from; None if unknown.

        Its `revision` is `rendering.model_hash` of its folder where that was known: of a model that was served for the
        build, or whose folder was named as `actor.tokenizer` of a server. A Hub id has none. Trees name it among their
        models, which enter the fingerprint; what doesn't enter it is in `details`.
        """
        noted = self.details.get("actor")
        if isinstance(noted, dict):
            with contextlib.suppress(ValidationError):  # somebody else's details
                return ModelIdentity.model_validate({"role": ACTOR} | noted)
        return next((model for model in self.models if model.role == ACTOR), None)

    @property
    def same_trees(self) -> list[str]:
        """Content hashes of the trees that these are, node for node, as other judges rated them before."""
        noted = self.details.get("same_trees")
        return [each for each in noted if isinstance(each, str)] if isinstance(noted, list) else []


def fingerprint(
    generator: str,
    configuration: Mapping[str, Any],
    parents: list[Parent],
    models: list[ModelIdentity],
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Hash all that can change rows.

    Args:
        generator: name and version of the generator.
        configuration: the part of its configuration that can change rows.
        parents: parent artifacts, of which the content hashes count.
        models: models, of which revision or weight hash and tokenizer hash count.
        inputs: sha256 of each input file that is not an artifact.
    """
    return sha256_of_json(
        {
            "generator": generator,
            "configuration": configuration,
            "parents": sorted(parent.content_hash for parent in parents),
            "models": sorted(
                ([model.role, model.name, model.revision, model.tokenizer_hash] for model in models), key=str
            ),
            "inputs": dict(inputs or {}),
        }
    )


def content_hash(files: list[FileEntry]) -> str:
    """Hash the paths and hashes of an artifact's data files, whatever their order."""
    return sha256_of_json([[entry.path, entry.sha256] for entry in sorted(files, key=lambda entry: entry.path)])


def sha256_of_json(value: object) -> str:
    """Hash a value's canonical JSON form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hash a file without reading it whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> datetime:
    """Return the current time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def read_origin(folder: Path) -> Origin | None:
    """Read where an artifact stands on the Hub, if it was pulled from there or pushed."""
    try:
        return Origin.model_validate_json(read_text(folder / ORIGIN_NAME, NOTE_BYTES))
    except (OSError, UnicodeDecodeError, ValidationError, TooLargeError):
        return None  # a note beside the artifact, which is whole without it


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an artifact.

    Raises:
        ArtifactError: the manifest is missing (the artifact is incomplete), broken, or of a newer format.
    """
    path = folder / MANIFEST_NAME
    try:
        text = read_text(path, MANIFEST_BYTES)
        check_json(text, path, "the manifest")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} has no {MANIFEST_NAME}: the artifact is incomplete; run its build again to finish it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from error
    except TooLargeError as error:
        raise ArtifactError(str(error)) from None
    try:
        check_keys(text)
        manifest = Manifest.model_validate_json(text)
    except KeyTwiceError as error:
        raise ArtifactError(f"{path} is not a manifest this release reads: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ArtifactError(
            f"{path} is not a manifest this release reads: {where}: {first['msg']}; pull or build the artifact again"
        ) from error
    if manifest.manifest_format != MANIFEST_FORMAT:
        raise ArtifactError(
            f"{path} is a manifest of format {manifest.manifest_format}; this release reads {MANIFEST_FORMAT}"
        )
    return manifest
