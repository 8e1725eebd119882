"""The artifact of kind `reviews`: every answer of every reviewer to the items of one artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from stairdata_review.agreement import agreement
from stairdata_review.items import item_ids
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact, open_artifact, versions
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import ArtifactError, ReviewError
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import sha256_of_json
from stairdata_schemas.quarantine import QuarantineRow

GENERATOR = "reviews/1"
CHANGED = ("verdict", "safe", "comment", "spans", "answers")


@dataclass(slots=True)
class Source:
    """Where answers come from."""

    dataset_id: str
    """Argilla's id of the dataset; of files, the content hash of what was reviewed."""
    name: str
    guideline_version: str
    left_out: dict[str, int] = field(default_factory=dict)
    """Answers that are none: drafts, discarded ones, and what else was not taken."""
    last_activity_at: str | None = None
    """When somebody last answered, by the server's clock."""


def build_reviews(
    rows: list[Row],
    reviewed: Artifact,
    source: Source,
    root: Path,
    version: str | None = None,
    *,
    refused: Iterable[QuarantineRow] = (),
    max_quarantine: float = 0.05,
) -> Artifact:
    """Write answers as an artifact; the same answers give the artifact that is there already.

    Args:
        rows: of kind reviews.
        reviewed: what was reviewed; the artifact's parent.
        source: where the answers come from.
        root: folder of the artifacts.
        version: of the new artifact; default: the next.
        refused: answers that can't be taken.
        max_quarantine: largest share of them.

    Raises:
        ReviewError: not one answer.
    """
    refused = list(refused)
    if not rows and not refused:
        counts = ", ".join(f"{name} {count}" for name, count in source.left_out.items() if count) or "none"
        raise ReviewError(f"{source.name} has no submitted answer yet (left out: {counts})")
    rows = sorted(rows, key=lambda row: (row["item_id"], row["reviewer"]))
    plan = BuildPlan(
        "reviews",
        GENERATOR,
        {"item_kind": reviewed.kind, "dataset_id": source.dataset_id, "guideline_version": source.guideline_version},
        settings={"dataset": source.name},
        parents=[reviewed.as_parent()],
        inputs={"answers": sha256_of_json([rows, [each.raw for each in refused]])},
        license=reviewed.manifest.license,
    )
    before = newest_of(root, source.dataset_id)
    # answers that were given before are a new version all the same, if others came in between and were withdrawn
    is_other = before is not None and before.manifest.fingerprint != plan.fingerprint
    is_other &= source.last_activity_at is not None  # of a server; a table imported again is the same table
    schema = polars_schema("reviews")
    frame = pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)

    def content(_: Build) -> BuildContent:  # not before it is needed: agreement takes its time
        return BuildContent([frame], refused, report_of(frame, reviewed, source, before))

    return build_artifact(plan, content, root, version, fresh=is_other, max_quarantine=max_quarantine)


def newest_of(root: Path, dataset_id: str) -> Artifact | None:
    """Return the newest reviews of a dataset under a root."""
    for version in reversed(versions(root, "reviews")):
        try:
            artifact = open_artifact(root / "reviews" / str(version))
        except ArtifactError:  # unfinished
            continue
        if artifact.manifest.configuration.get("dataset_id") == dataset_id:
            return artifact
    return None


def report_of(frame: pl.DataFrame, reviewed: Artifact, source: Source, before: Artifact | None) -> Report:
    """Say what the manifest keeps beside the rows."""
    times = frame["submitted_at"]
    details: Json = {
        "dataset": {"id": source.dataset_id, "name": source.name, "last_activity_at": source.last_activity_at},
        "reviewed": reviewed_by(reviewed),
        "first_submitted_at": _iso(times.min()),
        "last_submitted_at": _iso(times.max()),
        "left_out": source.left_out,
        "agreement": agreement(frame, facts_of(reviewed)) if len(frame) else {},
    }
    if before is not None:
        details["since"] = {"reviews": before.reference, **compared(before.scan().collect(), frame)}
    return Report(outcomes={"submitted": len(frame), **source.left_out}, details=details)


def reviewed_by(artifact: Artifact) -> Json:
    """Name what was reviewed, and what that was made from: pairs built again from the same trees keep their ids."""
    parents = [{"kind": each.kind, "content_hash": each.content_hash} for each in artifact.manifest.parents]
    return {"artifact": artifact.reference, "content_hash": artifact.manifest.content_hash, "parents": parents}


def facts_of(reviewed: Artifact) -> pl.DataFrame:
    """Return `item_id`, and task, depth and margin where the kind has them."""
    names = [name for name in ("task", "depth", "margin") if name in reviewed.scan().collect_schema()]
    return item_ids(reviewed).select("item_id").hstack(reviewed.scan().select(names).collect())


def compared(old: pl.DataFrame, new: pl.DataFrame) -> dict[str, int]:
    """Count what changed between two pulls of a dataset."""
    keys = ["item_kind", "item_id", "reviewer"]
    both = new.join(old, on=keys, suffix="_old")
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_old")) for name in CHANGED)
    return {
        "new": len(new) - len(both),
        "changed": len(both) - int(both.select(same.sum()).item() or 0),
        "withdrawn": len(old) - len(both),
    }


def _iso(moment: Any) -> str | None:
    return moment.isoformat() if moment is not None else None
