"""The owner's name, password and API key of a server of ours, and the server's own secrets: one file, mode 0600."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from stairdata_schemas.errors import ReviewError
from stairdata_schemas.files import write_private

FILE = "credentials.json"
OWNER = "owner"


class Credentials(BaseModel):
    """What a server's folder keeps secret; generated once, never the same twice."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    username: str = OWNER
    """The owner's name for signing in."""
    password: str
    """The owner's password."""
    api_key: str
    """The owner's key for the SDK."""
    secret_key: str
    """Signs the browser's sessions, so that they outlive a restart."""
    redis_password: str
    """The queue of background jobs wants it."""


def read_credentials(folder: Path) -> Credentials:
    """Return the credentials that a server's folder holds.

    Raises:
        ReviewError: there are none, they can't be read, or others can read them too.
    """
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ReviewError(f"{str(path)!r} is missing: `stairdata review serve` creates it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ReviewError(f"{str(path)!r} can't be read: {error}") from None
    if mode & 0o077:
        raise ReviewError(f"{str(path)!r} can be read by others: chmod 600 {str(path)!r}, then review serve again")
    try:
        return Credentials.model_validate_json(text)
    except ValidationError as error:
        # the message names fields, never values
        fields = ", ".join(".".join(map(str, each["loc"])) or each["type"] for each in error.errors())
        raise ReviewError(
            f"{str(path)!r} is damaged ({fields}): `stairdata review stop`, delete it, and `stairdata "
            "review serve` gives the owner new ones"
        ) from None


def ensure_credentials(folder: Path) -> Credentials:
    """Return the credentials of a folder, made at the first call."""
    if (folder / FILE).exists():
        return read_credentials(folder)
    made = Credentials(
        password=generate_password(),
        api_key=secrets.token_urlsafe(48),
        secret_key=secrets.token_hex(32),
        redis_password=secrets.token_hex(32),
    )
    write_private(folder / FILE, made.model_dump_json(indent=2))
    return made


def generate_password() -> str:
    """Return a password of 120 bits that can be read out and typed."""
    return "-".join(secrets.token_hex(5) for _ in range(3))
