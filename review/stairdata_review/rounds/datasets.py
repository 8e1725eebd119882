"""Workspaces and datasets of review rounds on a server: found, made, and known again.

A dataset belongs to one artifact: its metadata says which, and ids mean nothing beyond it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from time import sleep
from typing import NamedTuple

from stairdata_review.rounds.client import Argilla, conflict
from stairdata_review.rounds.settings import OURS, Layout
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import ReviewError, UsageError, quote

WORKSPACE = "stairdata"
FORMAT = 1
MAKING_SECONDS = 5.0
"""What the making of a dataset takes at most, where nobody interrupts it."""


class Round(NamedTuple):
    """A dataset on a server that `review push` made."""

    dataset_id: str
    name: str
    workspace_id: str
    min_submitted: int
    last_activity_at: str
    about: Json
    """What it holds: item_kind, artifact, content_hash, parents, guideline_version."""


def default_name(artifact: Artifact) -> str:
    return f"{artifact.kind.replace('_', '-')}-{artifact.manifest.version}"


def ensure_workspace(argilla: Argilla, name: str) -> str:
    """Return the id of a workspace, which is made if it isn't there."""
    for _ in range(2):
        found = [each["id"] for each in argilla.get("/me/workspaces")["items"] if each["name"] == name]
        if found:
            return str(found[0])
        with conflict(f"the workspace {quote(name)} belongs to somebody else; name one of yours with --workspace"):
            argilla.post("/workspaces", {"name": name})
    raise ReviewError(f"the workspace {quote(name)} was made but can't be found; choose another name with --workspace")


def list_rounds(argilla: Argilla, workspace: str) -> list[Round]:
    """Return the review rounds in a workspace; it may hold datasets of other programs, too."""
    workspaces = {each["id"] for each in argilla.get("/me/workspaces")["items"] if each["name"] == workspace}
    found = [each for each in argilla.get("/me/datasets")["items"] if each["workspace_id"] in workspaces]
    return [_round(each) for each in found if each["status"] == "ready" and _about(each)]


def find_round(argilla: Argilla, workspace: str, name: str | None, artifact: Artifact | None) -> Round:
    """Find the dataset to read: the one named, an artifact's own, or the only one there.

    Raises:
        ReviewError: none, or several.
    """
    known = list_rounds(argilla, workspace)
    wanted = name or (default_name(artifact) if artifact else None)
    matching = [each for each in known if wanted in {None, each.name}]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(each.name for each in known) or "none"
    if not matching:
        what = f"no review round {quote(wanted)}" if wanted else "no review round"
        raise ReviewError(
            f"{what} in the workspace {quote(workspace)} (there: {names}); begin one with `stairdata review push`, or "
            "name --workspace and --dataset"
        )
    raise ReviewError(f"several review rounds in the workspace {quote(workspace)}: {names}; choose with --dataset")


def ensure_round(
    argilla: Argilla,
    workspace_id: str,
    name: str,
    artifact: Artifact,
    layout: Layout,
    *,
    min_submitted: int | None,
    seed: int,
) -> Round:
    """Return an artifact's dataset, which is made if it isn't there; one that is half made is made anew.

    Args:
        argilla: a connection.
        workspace_id: where the dataset is.
        name: of the dataset.
        artifact: what it holds.
        layout: its fields, questions and guidelines.
        min_submitted: answers that complete an item; None takes the dataset's own number, which is 1 at first.
        seed: decides which side of each pair is A, where the dataset is new.

    Raises:
        ReviewError: a dataset of that name holds something else.
        UsageError: it asks for another number of answers.
    """
    found = _named(argilla, workspace_id, name)
    if found and _is_half_made(found):
        _wait_for_its_maker(found)
        found = _named(argilla, workspace_id, name)
    if found and _is_half_made(found):
        argilla.delete(f"/datasets/{found['id']}")  # a push was interrupted before the first record
        found = None
    if found is None:
        _make(argilla, workspace_id, name, artifact, layout, min_submitted=min_submitted or 1, seed=seed)
        found = _named(argilla, workspace_id, name)
    if found is None or _about(found).get("content_hash") != artifact.manifest.content_hash:
        raise ReviewError(
            f"the dataset {quote(name)} holds something other than {artifact.reference}; name another --dataset"
        )
    there = _round(found)
    if min_submitted not in {None, there.min_submitted}:
        raise UsageError(f"{quote(name)} asks for {there.min_submitted} answers per item; leave --min-submitted out")
    return there


def _is_half_made(dataset: Json) -> bool:
    return dataset["status"] != "ready" and bool(_about(dataset))


def _wait_for_its_maker(dataset: Json) -> None:
    """Let another push that has just begun the dataset finish; one that was interrupted is past that time soon."""
    begun = datetime.fromisoformat(dataset["inserted_at"])
    age = (datetime.now(UTC) - (begun if begun.tzinfo else begun.replace(tzinfo=UTC))).total_seconds()
    sleep(min(MAKING_SECONDS, max(0.0, MAKING_SECONDS - age)))


def _make(
    argilla: Argilla,
    workspace_id: str,
    name: str,
    artifact: Artifact,
    layout: Layout,
    *,
    min_submitted: int,
    seed: int,
) -> None:
    about = {
        "format": FORMAT,
        "item_kind": artifact.kind,
        "artifact": artifact.reference,
        "content_hash": artifact.manifest.content_hash,
        "guideline_version": layout.guideline_version,
        "seed": seed,  # of the order of A and B: the same for all that is ever pushed to the round
    }
    body = {
        "name": name,
        "workspace_id": workspace_id,
        "guidelines": layout.guidelines,
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": min_submitted},
        "metadata": {OURS: about},
    }
    with conflict(f"somebody else is making the dataset {quote(name)} just now; wait, and run the same command again"):
        dataset_id = argilla.post("/datasets", body)["id"]
    for path, parts in (("fields", layout.fields), ("questions", layout.questions)):
        for part in parts:
            argilla.post(f"/datasets/{dataset_id}/{path}", part)
    for part in layout.metadata:
        argilla.post(f"/datasets/{dataset_id}/metadata-properties", part)
    argilla.put(f"/datasets/{dataset_id}/publish")


def _named(argilla: Argilla, workspace_id: str, name: str) -> Json | None:
    datasets = argilla.get("/me/datasets", {"workspace_id": workspace_id})["items"]
    return next((each for each in datasets if each["name"] == name and each["workspace_id"] == workspace_id), None)


def _about(dataset: Json) -> Json:
    about = (dataset.get("metadata") or {}).get(OURS)
    return about if isinstance(about, dict) else {}


def _round(dataset: Json) -> Round:
    about = _about(dataset)
    if about.get("format") != FORMAT:
        raise ReviewError(
            f"the dataset {quote(dataset['name'])} was made by another release of stairdata; use that one to read it"
        )
    return Round(
        dataset["id"],
        dataset["name"],
        dataset["workspace_id"],
        dataset["distribution"]["min_submitted"],
        dataset["last_activity_at"],
        about,
    )
