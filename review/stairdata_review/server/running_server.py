"""A server that runs: where it is, how it is found, whether it answers."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from stairdata_review.server.credentials import FILE, Credentials, read_credentials
from stairdata_review.server.folder import DATABASE, STATE, default_folder, is_held
from stairdata_schemas.errors import ReviewError
from stairdata_schemas.network.socket_deadlines import SocketDeadline

REQUEST_TIMEOUT = 10.0
MOST_BYTES = 100_000  # of the description of a user


class RunningServer(BaseModel):
    """A server that runs, and where its things are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """Where the user interface and the API are."""
    folder: Path
    """Holds the database, the credentials and the logs."""
    pid: int
    """The process that runs the server."""
    started: str
    """When that process began, in its system's words: another process with this number isn't it."""
    redis_url: str | None = None
    """The Redis that was named, if one was."""
    new_owner: bool = False
    """Nobody was shown the owner's password and key before this start."""

    @property
    def credentials_file(self) -> Path:
        """The owner's password and API key."""
        return self.folder / FILE

    @property
    def database_file(self) -> Path:
        """SQLite: everything that people did."""
        return self.folder / DATABASE

    def credentials(self) -> Credentials:
        """Return the owner's name, password and key.

        Raises:
            ReviewError: they can't be read.
        """
        return read_credentials(self.folder)


def find_server(folder: Path | None = None) -> RunningServer | None:
    """Return the server that runs in a folder, or None.

    The lock decides, not the file: what a killed server left behind is not taken for a server.
    """
    folder = (folder or default_folder()).absolute()
    if not is_held(folder):
        return None
    try:
        return RunningServer.model_validate_json((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None  # it is just starting, or just ending


def is_healthy(server: RunningServer) -> bool:
    """Tell whether a server answers, and knows the owner's key: another program on the port does not pass for it."""
    try:
        headers = {"X-Argilla-Api-Key": server.credentials().api_key}
        owner = json.loads(_get(server.url, "/api/v1/me", headers))
    except (ReviewError, OSError, HTTPException, ValueError, RecursionError):
        return False
    return isinstance(owner, dict) and owner.get("role") == "owner"


def _get(url: str, path: str, headers: dict[str, str]) -> bytes:
    """Fetch a path of a server on this machine, which needs no proxy; empty unless the answer is 200 and short."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=REQUEST_TIMEOUT)
    with closing(connection), SocketDeadline(REQUEST_TIMEOUT) as deadline:
        connection.connect()
        deadline.watch(connection.sock)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(MOST_BYTES + 1)
    return body if answer.status == 200 and len(body) <= MOST_BYTES and not deadline.is_over else b""
