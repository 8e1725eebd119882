"""The artifacts that a build reads.

Each is looked up once, at the start of a build, and its `Artifact` is handed to whatever plans the build and to
whatever reads its rows. A version that appears meanwhile, here or on the Hub, can't come between the parents that the
manifest names and the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stairdata.hub.pull import open_reference
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a build may read: the artifacts that it was given, and the newest ones under a root."""

    root: Path
    references: tuple[str, ...] = ()
    """How the user names the given ones."""
    given: tuple[Artifact, ...] = ()
    """In the order of the references."""
    reviews: Artifact | None = None
    _newest: dict[str, Artifact] = field(default_factory=dict, repr=False)

    def of_kind(self, kind: str) -> Artifact:
        """Return the given input of a kind, else the newest local one: the same one each time.

        Raises:
            UsageError: two of that kind are given, or only others.
            ArtifactNotFoundError: none is given and none is there.
        """
        of_kind = [artifact for artifact in self.given if artifact.kind == kind]
        if len(of_kind) > 1:
            raise UsageError(f"more than one --input of kind {kind}: {', '.join(self.references)}")
        if self.given and not of_kind:
            kinds = ", ".join(artifact.reference for artifact in self.given)
            raise UsageError(f"this build needs an input of kind {kind}; --input gave {kinds}")
        if of_kind:
            return of_kind[0]
        if kind not in self._newest:
            self._newest[kind] = resolve(kind, self.root)
        return self._newest[kind]

    def has(self, kind: str) -> bool:
        """Tell whether an artifact of a kind was given."""
        return any(artifact.kind == kind for artifact in self.given)


def open_inputs(root: Path, references: Sequence[str] = (), reviews: str | None = None) -> Inputs:
    """Open what --input and --reviews name.

    Call it once a command: a Hub reference may mean another release the next time.

    Raises:
        StairDataError: a reference that leads nowhere.
    """
    given = tuple(open_reference(reference, root) for reference in references)
    return Inputs(root, tuple(references), given, open_reference(reviews, root) if reviews else None)
