"""Reviewers as salted hashes: a salt for each dataset, kept in a file that only its owner can read.

Who has the file can tell who a hash is; who has the artifact alone can't, also not by trying names.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path

from filelock import FileLock

from stairdata_review.server.folder import SALTS_FILE, SALTS_LOCK
from stairdata_schemas.errors import ReviewError
from stairdata_schemas.files import write_private

LENGTH = 16


def hash_of(salt: str, reviewer: str) -> str:
    """Return what stands for a reviewer: 16 hex digits."""
    return hashlib.sha256(f"{salt}/{reviewer}".encode()).hexdigest()[:LENGTH]


def salt_of(folder: Path, dataset: str) -> str:
    """Return a dataset's salt, made at the first call.

    Raises:
        ReviewError: the file of salts can't be read, or others can read it.
    """
    path = folder / SALTS_FILE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # a server may be started here later, and asks for that
    with FileLock(folder / SALTS_LOCK):
        known = _read(path)
        if dataset not in known:
            known[dataset] = secrets.token_hex(32)
            write_private(path, json.dumps(known, indent=2) + "\n")
        return known[dataset]


def _read(path: Path) -> dict[str, str]:
    try:
        mode = path.stat().st_mode
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ReviewError(
            f"{path} can't be read ({type(error).__name__}); without it reviewers get other hashes"
        ) from None
    if mode & 0o077:
        raise ReviewError(f"{path} can be read by others, and it reveals who the reviewers are: chmod 600 {path}")
    if not isinstance(known, dict):
        raise ReviewError(f"{path} is damaged; without it reviewers get other hashes")
    return known
