"""Kind `prompts`, out of another artifact of prompts: a part of its rows, as they are."""

from __future__ import annotations

import polars as pl

from stairdata.runs.build import build_as_told
from stairdata.runs.options import BuildOptions
from stairdata.runs.prompt_parts import PromptPart, ids_of
from stairdata_schemas.artifacts import Artifact, iterate_frames, with_later_columns
from stairdata_schemas.building import Build, BuildContent, BuildPlan

GENERATOR = "prompt_part/1"


def build_prompt_part(prompts: Artifact, part: PromptPart, seed: int, options: BuildOptions) -> Artifact:
    """Copy a part of the prompts, in their order.

    Raises:
        BuildError: the part is empty.
    """

    def content(_: Build) -> BuildContent:
        wanted = pl.Series([*ids_of(prompts, part, seed)], dtype=pl.String).implode()
        frames = (
            with_later_columns("prompts", frame.filter(pl.col("prompt_id").is_in(wanted)))
            for path in prompts.data_files
            for frame in iterate_frames(path)
        )
        return BuildContent(frames)

    plan = BuildPlan(
        "prompts",
        GENERATOR,
        {"part": [part.first, part.end], "seed": seed},
        parents=[prompts.as_parent()],
        seeds={"sampling": seed},
    )
    return build_as_told(plan, content, options)
