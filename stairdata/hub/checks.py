"""The checks of an artifact before it is published, and the note that they were made.

Reading every row of gigabytes takes longer than sending them to a Hub nearby. So the first full check of a large
artifact that finds nothing, at the end of its build or at a push, leaves a note: bytes with these hashes hold to
these rules and show no secret. A later push of the same bytes hashes them and reads no row.

The note names hashes, rules and versions of the libraries that read the rows; if any of them changes, rows are read
again. It lies on this machine under STAIRDATA_CACHE, never in the artifact, so that nobody sends one along; a note
that another user could have written does not count.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from stairdata.hub.secrets import RowScanner, SecretHit
from stairdata_schemas.artifacts import Artifact, Problem, validate_artifact
from stairdata_schemas.files import cache_folder, write_atomic
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import NOTE_BYTES, TooLargeError
from stairdata_schemas.manifest import sha256_of_json

NOTEWORTHY_BYTES = 64 * 1024**2
"""Smaller artifacts are read again in less than a second."""
_SCHEMA_MODULES = (
    "kinds",
    "artifacts",
    "formats/parquet",
    "grammar",
    "identity",
    "text/visible",
    "secrets/shapes",
    "secrets/own",
)


class CheckResult(NamedTuple):
    """What a check found."""

    problems: list[Problem]
    hits: list[SecretHit]
    """What looks like a secret in its rows."""


class CheckNote(BaseModel):
    """That an artifact was checked, and for which secrets of the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    salt: str
    secrets: list[str]
    """Slow salted hashes of them, as of passwords."""


def is_large(artifact: Artifact) -> bool:
    """Return whether an artifact's check is worth a note."""
    return sum(entry.bytes for entry in artifact.manifest.files) >= NOTEWORTHY_BYTES


def check(artifact: Artifact, own: Mapping[str, str]) -> CheckResult:
    """Check an artifact's bytes against its manifest, and each row unless a note says that it was checked.

    Args:
        artifact: what is about to be published.
        own: this machine's own secrets, which no row may hold, each with the name of its variable.
    """
    if is_noted(artifact, own):
        return CheckResult(validate_artifact(artifact, rows=False), [])
    scanner = RowScanner(artifact.kind, own)
    problems = validate_artifact(artifact, scanner)
    if is_large(artifact) and not problems and not scanner.hits:
        _write_note(artifact, own)
    return CheckResult(problems, scanner.hits)


def is_noted(artifact: Artifact, own: Iterable[str]) -> bool:
    """Return whether a note says that these bytes were checked by these rules and for these secrets."""
    path = _note_path(artifact)
    try:
        state = path.stat()
        note = CheckNote.model_validate_json(read_text(path, NOTE_BYTES))
    except (OSError, UnicodeDecodeError, ValidationError, TooLargeError):
        return False
    is_mine = state.st_uid == os.getuid() and not state.st_mode & 0o022
    return is_mine and all(_slow_hash(value, note.salt) in note.secrets for value in own)


def _write_note(artifact: Artifact, own: Iterable[str]) -> None:
    salt, path = secrets.token_hex(16), _note_path(artifact)
    note = CheckNote(salt=salt, secrets=sorted(_slow_hash(value, salt) for value in own))
    with suppress(OSError):  # without it the next push takes longer
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, note.model_dump_json() + "\n")
        path.chmod(0o600)


def _note_path(artifact: Artifact) -> Path:
    files = [entry.model_dump() for entry in artifact.manifest.files]
    name = sha256_of_json([_rules(), artifact.kind, artifact.manifest.rows, artifact.manifest.content_hash, files])
    return cache_folder() / "checked" / f"{name}.json"


@cache
def _rules() -> str:
    """Hash the code that checks, and the versions of what it reads rows with."""
    import stairdata.hub.secrets
    import stairdata_schemas

    folder = Path(str(stairdata_schemas.__file__)).parent
    sources = [*(folder / f"{name}.py" for name in _SCHEMA_MODULES), Path(str(stairdata.hub.secrets.__file__))]
    libraries = [version(name) for name in ("polars", "pyarrow", "dataframely")]
    return sha256_of_json([[hashlib.sha256(path.read_bytes()).hexdigest() for path in sources], libraries])


def _slow_hash(value: str, salt: str) -> str:
    return hashlib.scrypt(value.encode("utf-8", "surrogateescape"), salt=salt.encode(), n=2**14, r=8, p=1).hex()
