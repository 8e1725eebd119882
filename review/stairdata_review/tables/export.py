"""Items as a table for reviewers to fill in."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from stairdata_review.blinding import first_side
from stairdata_review.guidelines import CONTACT, guidelines_of
from stairdata_review.items import read_items
from stairdata_review.tables.cells import check_format, write_rows
from stairdata_review.tables.columns import choices_of, text_columns, texts_of
from stairdata_schemas.artifacts import Artifact


def export_items(
    artifact: Artifact, path: Path, chosen: pl.DataFrame, seed: int, *, reviewer: str = "", contact: str = CONTACT
) -> None:
    """Write items to review as a table, pairs in the same blind order as in Argilla.

    Args:
        artifact: pairs, trees or structured_cot.
        path: .csv, .xlsx or .jsonl.
        chosen: `row` and `item_id` of the items, as `select` gives them.
        seed: fixes which side is A.
        reviewer: whose answers are to be filled in.
        contact: whom reviewers may talk to.
    """
    suffix = check_format(path)
    choices = choices_of(artifact.kind)
    version, guidelines = guidelines_of(artifact.kind, in_argilla=False, contact=contact)
    columns = ["item_id", *text_columns(artifact.kind), *choices, "comment", "reviewer", "guideline_version"]
    empty = dict.fromkeys([*choices, "comment"], "")
    rows = (
        {
            "item_id": item.item_id,
            **texts_of(item, artifact.kind, first_side(seed, item.item_id), suffix),
            **empty,
            "reviewer": reviewer,
            "guideline_version": version,
        }
        for item in read_items(artifact, chosen)
    )
    write_rows(path, columns, rows, choices, guidelines)
