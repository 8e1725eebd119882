"""The folder of a server: what lies in it, who may look into it, and the lock of the process that runs the server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from stairdata_schemas.errors import ReviewError
from stairdata_schemas.files import write_atomic

DATABASE = "argilla.db"
LOGS = "logs"
STATE = "server.json"
"""Which server runs here; says nothing unless the lock is held."""
LOCK = "server.lock"
SALTS = {"review-salts.json", "review-salts.lock"}
"""What an import of answers leaves here before there is a server (`stairdata_review.reviewers`)."""
UNTOLD = "owner.untold"
"""Is there from the making of the owner's credentials until a start with them succeeds."""
LOOK_PATIENCE = 0.1
"""Seconds; who only looks whether the lock is held holds it for less."""
HOLD_PATIENCE = 2.0


def default_folder() -> Path:
    """Return where a server keeps its data: STAIRDATA_HOME/argilla, else under the user's data folder."""
    home = os.environ.get("STAIRDATA_HOME")
    if home:
        return Path(home) / "argilla"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "stairdata" / "argilla"


def make_folder(folder: Path) -> None:
    """Make a server's folder, for this user alone.

    Raises:
        ReviewError: it can't be made or written.
    """
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
        elif folder.stat().st_mode & 0o077 and not (folder / DATABASE).exists():
            if {path.name for path in folder.iterdir()} - SALTS:
                raise ReviewError(
                    f"the folder {str(folder)!r} holds other things and is open to other users; name an empty one, or "
                    "one of your own, with --folder"
                )
            folder.chmod(0o700)
        (folder / LOGS).mkdir(exist_ok=True)
        write_atomic(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise ReviewError(
            f"the server's folder {str(folder)!r} can't be used: {error.strerror}; name another with --folder"
        ) from error


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold the lock of a server's folder, or yield false because another process does."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=HOLD_PATIENCE, poll_interval=0.02)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        (folder / STATE).unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Tell whether some process runs a server in the folder, or is just starting or ending one.

    Raises:
        ReviewError: the lock can't be looked at.
    """
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=LOOK_PATIENCE, poll_interval=0.02):
            return False
    except Timeout:
        return True
    except OSError as error:
        raise ReviewError(f"the server's folder {str(folder)!r} can't be used: {error.strerror}") from error
