"""Who may see a release, and under which licence: decided before the first byte is sent.

A repository begins private, and gated unless every row's task is helpfulness. `--public` changes visibility alone,
the gate falls only with `--gated no`. A repository that is public or ungated already is refused unless the same is
typed again: nobody publishes by accident into something open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import polars as pl

from stairdata.hub.client import Repository
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import PublishError, UsageError, nearest, quote
from stairdata_schemas.licenses import HUB, is_identifier, is_laxer, normal, strictest
from stairdata_schemas.manifest import Manifest

Gate = Literal["manual", "auto", "no"]
GATES = ("manual", "auto", "no")


class Access(NamedTuple):
    """How a repository is to be, and what has to be changed for that."""

    private: bool
    gate: Gate
    gate_first: Literal["manual", "auto"] | None
    """Gate to set before anything is uploaded; None if it is right already."""
    open_last: bool
    """Make the repository public once the release is whole."""
    ungate_last: bool
    """Take the gate away once the release is whole."""


def needs_gate(artifact: Artifact) -> bool:
    """Return whether a dataset has to be gated: not unless every row's task is helpfulness."""
    if "task" not in artifact.scan().collect_schema().names():
        return True
    others = artifact.scan().select((pl.col("task") != "helpfulness").fill_null(value=True).any())
    return bool(others.collect(engine="streaming").item())


def decide_access(
    found: Repository | None, is_new: bool, artifact: Artifact, *, public: bool, gated: Gate | None
) -> Access:
    """Decide on visibility and gate.

    Args:
        found: the repository, if it is there.
        is_new: it is not there, or empty and private, as a killed push leaves it.
        artifact: what is to be published.
        public: --public was typed.
        gated: what was typed as --gated, if anything.

    Raises:
        PublishError: the repository is public or ungated and that was not typed.
    """
    must = needs_gate(artifact)
    if found is None or (is_new and not found.is_gated):
        gate: Gate = gated or ("manual" if must else "no")
        return Access(not public, gate, None if gate == "no" else gate, open_last=public, ungate_last=False)
    if not found.private and not public:
        raise PublishError(
            f"{found.name} is public; pass --public to publish into it, or make it private on the Hub, or name another "
            "--repo"
        )
    if not found.is_gated and must and gated is None:
        raise PublishError(
            f"{found.name} is not gated, and {artifact.reference} holds rows that are not helpfulness; pass --gated no "
            "to publish them ungated, or --gated manual to gate the repository first"
        )
    current: Gate = "no" if not found.is_gated else "auto" if found.gated == "auto" else "manual"
    wanted = gated or current
    return Access(
        private=found.private and not public,
        gate=wanted,
        gate_first=None if wanted == "no" or wanted == current else wanted,  # noqa: PLR1714
        open_last=found.private and public,
        ungate_last=wanted == "no" and current != "no",
    )


def decide_model_access(found: Repository | None, *, public: bool, gated: Gate | None) -> Access:
    """Decide on visibility and gate of a model: private, and gated only if that was typed.

    Raises:
        PublishError: the repository is public and that was not typed.
    """
    if found is not None and not found.private and not public:
        raise PublishError(
            f"{found.name} is public; pass --public to publish into it, or make it private on the Hub, or name another "
            "--repo"
        )
    current: Gate = "no" if found is None or not found.is_gated else "auto" if found.gated == "auto" else "manual"
    wanted = gated or current
    return Access(
        private=not public,
        gate=wanted,
        gate_first=None if wanted == "no" or wanted == current else wanted,  # noqa: PLR1714
        open_last=public and (found is None or found.private),
        ungate_last=wanted == "no" and current != "no",
    )


def decide_model_license(typed: str | None, stated: Iterable[object], *, public: bool) -> str | None:
    """Return the licence of a model: the one typed, else the first one that a card states; None if it is unknown.

    What the licences of its start model and its data ask for is not known here: who publishes it has to say.

    Raises:
        UsageError: --license is no identifier, or, where it is to be public, none that the Hub knows.
        PublishError: a public repository would have an unknown licence.
    """
    if typed is not None:
        return _typed_license(typed, public=public)
    known = [found for text in stated if isinstance(text, str) and (found := normal(text)) and is_identifier(found)]
    if not known and public:
        raise PublishError(
            "a model of unknown licence can't be public; give --license ID, no less strict than those of its start "
            "model and its data, or publish it privately"
        )
    return known[0] if known else None


def decide_license(
    own: Manifest, typed: str | None, others: Iterable[Manifest], stated: str | None, *, public: bool
) -> str | None:
    """Return the licence of a repository: the strictest of all that stands in it.

    Args:
        own: manifest of what is to be published.
        typed: --license, which names the licence where the parents' is unknown, or a stricter one.
        others: manifests of the repository's other configs.
        stated: the licence that the repository's card states, which holds for the other configs.
        public: the repository is, or will be, public.

    Raises:
        UsageError: --license is no identifier, or, where it is to be public, none that the Hub knows.
        PublishError: --license is laxer than the parents', or a public repository would have an unknown one.
    """
    chosen = _own_license(own, typed, public=public)
    reference = f"{own.kind}@{own.version}"
    known = [(reference, chosen)]
    known += [(f"{other.kind}@{other.version}", normal(other.license) or normal(stated)) for other in others]
    found = strictest(license for _, license in known)
    if found is None and public:
        unknown = ", ".join(name for name, license in known if normal(license) is None)
        why = f"the licence of {unknown} is unknown" if unknown else "its licences can't be compared"
        raise PublishError(
            f"{reference} can't be public: {why}; give --license ID (such as cc-by-nc-4.0) if you know it, or set "
            "`license:` in the prompts' source and build again, or publish it privately"
        )
    return found


def _own_license(own: Manifest, typed: str | None, *, public: bool) -> str | None:
    known = normal(own.license)
    if typed is None:
        return known
    given = _typed_license(typed, public=public)
    stated = [license for license in (known, *(normal(parent.license) for parent in own.parents)) if license]
    laxer = next((license for license in stated if is_laxer(given, license)), None)
    if laxer is not None:
        raise PublishError(f"--license {given} is less strict than {laxer}, the licence of what the rows come from")
    return given


def _typed_license(typed: str, *, public: bool) -> str:
    given = normal(typed)
    if given is None or not is_identifier(given):
        raise UsageError(f"--license {quote(typed)} is not a licence identifier; use one of the Hub's, such as mit")
    if public and given not in HUB:
        close = nearest(given, HUB)
        hint = f"did you mean {close}? Else " if close else ""
        raise UsageError(
            f"--license {quote(typed)} is not a licence that the Hub knows; {hint}take one of "
            "https://huggingface.co/docs/hub/repositories-licenses, or publish privately"
        )
    return given
