"""Where the prompts of an evaluation come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stairdata.recipe.section import Section, Task
from stairdata_schemas.fingerprints import Mark

BenchmarkColumn = Literal["prompt", "task", "category", "label", "reference_answer"]
BenchmarkScore = Literal["strongreject", "xstest", "refusal", "winrate", "gsm8k", "simpleqa", "label"]


class BenchmarkSection(Section):
    """One benchmark: a known one by its name, or your own file and its columns."""

    name: str = ""
    """Needed; what rows call it. A known one (strongreject, xstest, do-not-answer, harmbench, wildchat-toxic,
    alpaca_eval, gsm8k, simpleqa, advglue) needs no columns and no score."""
    like: str | None = None
    """Read and score it as this known benchmark, under another name: {name: xstest-de, like: xstest, path: FILE}."""
    path: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """A .json, .jsonl, .ndjson, .csv, .tsv or .parquet file (all but the last also compressed), or a folder of such
    files."""
    hub: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """A Hub dataset id; default, where there is no path: a known benchmark's own."""
    revision: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """Commit, tag or branch of the Hub dataset; recorded as a commit. Needed where this release has tested none."""
    config: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """The Hub dataset's configuration; default: a known one's own."""
    split: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """The Hub dataset's split; default: a known one's own, else test."""
    columns: dict[BenchmarkColumn, str] = {}
    """Our column name to the file's: {prompt: question, reference_answer: solution}. Dots reach into nested values."""
    where: dict[str, bool | int | float | str | list[bool | int | float | str]] = {}
    """Take only rows whose columns have these values (or one of them): {label: unsafe}. Case does not matter."""
    task: Task | None = None
    """Task of every row; default: a known one's own, else the column `task`."""
    score: BenchmarkScore | None = None
    """How its answers are scored; default: a known one's own, else refusal for safety and winrate for helpfulness."""
    limit: int | None = Field(None, ge=1)
    """Read only this many rows from the start."""
    count: int | None = Field(None, ge=1)
    """Take this many prompts of those, sampled with the recipe's seed; default: all."""
    license: Annotated[str | None, Mark.CANNOT_CHANGE_RESULT] = None
    """The licence as the Hub names it; default: a known one's own, else what a Hub dataset's card says."""

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not self.name.strip():
            raise ValueError(
                "a benchmark needs a name: a known one's, such as xstest, or your own with path and columns"
            )
        return self
