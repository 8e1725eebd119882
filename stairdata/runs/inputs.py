"""The artifacts that a build reads, each looked up once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stairdata.hub.pull import open_reference
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.errors import UsageError


class Inputs:
    """What `--input` names, and the newest local artifact of each kind that it does not.

    Invariant: a kind is looked up once, however often it is asked for. So the artifact that the manifest names as
    parent is the one that the rows come from, also where a newer version is finished in the meantime.

    Args:
        references: of `--input`; each is opened here.
        root: where local artifacts are.

    Raises:
        ArtifactNotFoundError: a reference that names nothing.
        HubError: one on the Hub that can't be fetched.
    """

    def __init__(self, references: Sequence[str], root: Path) -> None:
        self._references = tuple(references)
        self._root = root
        self._named = [open_reference(reference, root) for reference in references]
        self._newest: dict[str, Artifact] = {}

    def names(self, kind: str) -> bool:
        """Return whether `--input` names an artifact of a kind."""
        return any(artifact.kind == kind for artifact in self._named)

    def all_of(self, kind: str) -> list[Artifact]:
        """Return all that `--input` names, which have to be of one kind.

        Raises:
            UsageError: one is of another kind.
        """
        other = next((artifact for artifact in self._named if artifact.kind != kind), None)
        if other is not None:
            raise UsageError(f"this build needs inputs of kind {kind}; --input gave {other.reference}")
        return self._named

    def of(self, kind: str) -> Artifact:
        """Return the input of a kind: the one that `--input` names, else the newest local one.

        Raises:
            UsageError: several of the kind are named, or only ones of other kinds.
            ArtifactNotFoundError: none is named, and there is no local one.
        """
        of_kind = [artifact for artifact in self._named if artifact.kind == kind]
        if len(of_kind) > 1:
            raise UsageError(f"more than one --input of kind {kind}: {', '.join(self._references)}")
        if of_kind:
            return of_kind[0]
        if self._named:
            kinds = ", ".join(artifact.reference for artifact in self._named)
            raise UsageError(f"this build needs an input of kind {kind}; --input gave {kinds}")
        if kind not in self._newest:
            self._newest[kind] = resolve(kind, self._root)
        return self._newest[kind]


def input_rows(artifact: Artifact, columns: list[str], limit: int | None) -> list[dict[str, Any]]:
    """Read some columns of an input, of its first `limit` rows."""
    lazy = artifact.scan().select(columns)
    return (lazy if limit is None else lazy.head(limit)).collect().to_dicts()
