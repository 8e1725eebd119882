"""Reviewers: annotators of a workspace, who see and answer what is pushed there, and nothing else."""

from __future__ import annotations

import re
from typing import NamedTuple

from stairdata_review.rounds.client import Argilla, conflict
from stairdata_review.rounds.datasets import ensure_workspace
from stairdata_review.server.credentials import generate_password
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import ReviewError, UsageError, quote

ROLE = "annotator"
BEGUN = "(invitation not finished)"
"""A reviewer's last name until the invitation is whole; nobody was told the password of one who is still called so."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class Invitation(NamedTuple):
    """What a reviewer needs to sign in."""

    url: str
    username: str
    password: str | None
    """None: the reviewer has one already, which nobody else knows."""


def invite(argilla: Argilla, name: str, workspace: str, *, new_password: bool = False) -> Invitation:
    """Make a reviewer, or let one that is there into a workspace too; the password is generated, and kept nowhere.

    Args:
        argilla: a connection as owner, who alone may make users.
        name: to sign in with.
        workspace: which the reviewer may see; made if it isn't there.
        new_password: give a reviewer who is there already a new password.

    Raises:
        UsageError: not a name that one can sign in with.
        ReviewError: the name is an owner's or admin's, or the server refuses.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{quote(name)} is not a valid user name: use letters, digits, dot, dash, underscore and @, up to 64"
        )
    workspace_id = ensure_workspace(argilla, workspace)
    user = next((each for each in argilla.get("/users")["items"] if each["username"] == name), None)
    is_begun = user is not None and user["last_name"] == BEGUN
    password = generate_password() if user is None or is_begun or new_password else None
    if user is None:
        is_begun = True
        body = {"first_name": name, "last_name": BEGUN, "username": name, "role": ROLE, "password": password}
        with conflict(f"{quote(name)} was made by somebody else at this moment; run the command again"):
            user = argilla.post("/users", body)
    elif user["role"] != ROLE:
        raise ReviewError(f"{quote(name)} is an {user['role']} there; reviewers are annotators: choose another name")
    elif password is not None:
        argilla.patch(f"/users/{user['id']}", {"password": password})
    _let_in(argilla, user, workspace_id)
    if is_begun:
        argilla.patch(f"/users/{user['id']}", {"last_name": None})
    return Invitation(argilla.url, name, password)


def _let_in(argilla: Argilla, user: Json, workspace_id: str) -> None:
    members = argilla.get(f"/workspaces/{workspace_id}/users")["items"]
    if user["id"] not in {each["id"] for each in members}:
        argilla.post(f"/workspaces/{workspace_id}/users", {"user_id": user["id"]})
