"""The whole ancestry of an artifact: parents and their parents, found under the root or read from the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.hub.client import manifests, read, tree
from stairdata.hub.releases import parse_manifest
from stairdata_schemas.artifacts import Artifact, list_folders, open_artifact
from stairdata_schemas.errors import ArtifactError, HubError
from stairdata_schemas.formats.limits import MANIFEST_BYTES
from stairdata_schemas.manifest import Manifest, Parent, read_origin

ArtifactKey = tuple[str, str]
"""Kind and content hash: artifacts of two kinds may hold the same bytes."""


def artifact_key(named: Manifest | Parent) -> ArtifactKey:
    """Return what an artifact is found by."""
    return named.kind, named.content_hash


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An artifact in a lineage."""

    reference: str
    content_hash: str
    where: str
    """Folder, or repository and commit, or why it was not found."""
    found: bool
    rows: int | None = None
    generator: str | None = None
    models: list[str] = field(default_factory=list)
    license: str | None = None
    parents: list[Ancestor] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("reference", "content_hash", "where", "found", "rows")}
        plain |= {"generator": self.generator, "models": self.models, "license": self.license}
        return plain | {"parents": [parent.as_json() for parent in self.parents]}


def lineage(artifact: Artifact, root: Path) -> Ancestor:
    """Follow an artifact's parents to the end.

    A parent is looked for under the root and beside the artifact by its kind and content hash, then on the Hub if its
    manifest names a commit; one that is in neither place is drawn as not found.
    """
    local = {**local_artifacts(artifact.folder.parent.parent), **local_artifacts(root)}
    origin = read_origin(artifact.folder)
    where = str(artifact.folder) + (f", on the Hub as {origin.repo} at {origin.commit[:12]}" if origin else "")
    beside = (origin.repo, origin.commit) if origin else None
    return _ancestor(artifact.manifest, where, ParentIndex(local, beside), frozenset())


def nearest_ancestor(artifact: Artifact, kind: str, root: Path) -> Artifact | None:
    """Return the artifact of a kind that another was made from; None if it is not on this machine.

    Args:
        artifact: whose parents, and their parents, are looked at.
        kind: of the ancestor.
        root: where it may be, besides the folder that the artifact itself is in.
    """
    known = {**local_artifacts(artifact.folder.parent.parent), **local_artifacts(root)}
    generation, seen = [artifact], set[ArtifactKey]()
    while generation:
        keys = [artifact_key(parent) for each in generation for parent in each.manifest.parents]
        generation = [known[key] for key in dict.fromkeys(keys) if key in known and key not in seen]
        seen.update(keys)
        found = next((each for each in generation if each.kind == kind), None)
        if found is not None:
            return found
    return None


class ParentIndex(NamedTuple):
    """Where parents are looked for."""

    local: dict[ArtifactKey, Artifact]
    beside: tuple[str, str] | None
    """Repository and commit of the child: its other configs may be what it was made from."""


def local_artifacts(root: Path) -> dict[ArtifactKey, Artifact]:
    """Return the complete artifacts under a root; of those with the same content, the last."""
    return {artifact_key(artifact.manifest): artifact for artifact in complete_artifacts(root)}


def complete_artifacts(root: Path) -> Iterator[Artifact]:
    """Yield the complete artifacts under a root."""
    for _, _, folder in list_folders(root):
        with suppress(ArtifactError):  # unfinished or damaged: can't be told apart from one that is not there
            yield open_artifact(folder)


def _ancestor(manifest: Manifest, where: str, known: ParentIndex, seen: frozenset[ArtifactKey]) -> Ancestor:
    below = seen | {artifact_key(manifest)}
    return Ancestor(
        reference=f"{manifest.kind}@{manifest.version}",
        content_hash=manifest.content_hash,
        where=where,
        found=True,
        rows=manifest.rows,
        generator=manifest.generator,
        models=[f"{model.role} {model.name}" for model in manifest.models],
        license=manifest.license,
        parents=[_parent(parent, known, below) for parent in manifest.parents],
    )


def _parent(parent: Parent, known: ParentIndex, seen: frozenset[ArtifactKey]) -> Ancestor:
    reference = f"{parent.kind}@{parent.version}"
    if artifact_key(parent) in seen:
        return Ancestor(reference, parent.content_hash, "its own ancestor: a manifest is wrong", found=False)
    if artifact_key(parent) in known.local:
        artifact = known.local[artifact_key(parent)]
        return _ancestor(artifact.manifest, str(artifact.folder), known, seen)
    place = (parent.repo, parent.commit) if parent.repo and parent.commit else known.beside
    if place is None:
        return Ancestor(reference, parent.content_hash, "not under the root, and not from the Hub", found=False)
    where = f"{place[0]} at {place[1][:12]}"
    try:
        manifest = _remote_manifest(*place, parent)
    except HubError as error:
        return Ancestor(reference, parent.content_hash, f"{where}: {error}", found=False)
    if manifest is None:
        return Ancestor(reference, parent.content_hash, f"{where}: no such artifact there", found=False)
    return _ancestor(manifest, where, ParentIndex(known.local, place), seen)


def _remote_manifest(repo: str, commit: str, parent: Parent) -> Manifest | None:
    """Find the manifest of a parent at a commit, whichever config it is."""
    for path in manifests(tree(repo, commit)).values():
        manifest = parse_manifest(read(repo, path, commit, MANIFEST_BYTES))
        if manifest is not None and artifact_key(manifest) == artifact_key(parent):
            return manifest
    return None
