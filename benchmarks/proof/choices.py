"""The best of several scored samples, by ways to choose that nothing is asked for again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import polars as pl

from stairdata.statistics.strata import ContrastComparison, ContrastEstimate, compare_contrasts
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import InputError

from .figures import STRATA, primary_of, strata_of
from .lines import XSTEST

Samples = list[dict[str, Any]]
"""Those of one prompt, in their order."""


class Choice(NamedTuple):
    """One way to choose."""

    name: str
    primary: ContrastEstimate
    against_random: ContrastComparison | None
    """Paired by prompt; None of the random choice itself."""

    def as_json(self) -> Json:
        """Return what results.json holds."""
        against = self.against_random and self.against_random.as_json()
        return {"name": self.name, "primary": self.primary.as_json(), "against_random": against}


def _right(sample: dict[str, Any]) -> bool:
    return bool(sample["refused"]) == (STRATA[sample["label"]] > 0)


WAYS: dict[str, Callable[[dict[str, Any]], float]] = {
    "process reward model": lambda sample: sample["prm_score"],
    "longest": lambda sample: sample["characters"],
    "shortest": lambda sample: -sample["characters"],
    "the judge itself (ceiling)": lambda sample: float(_right(sample)),
}
"""What is highest of the chosen sample; of equal ones the first is taken."""
RANDOM = "random"


def compare_choices(rows: pl.DataFrame) -> list[Choice]:
    """Choose among the samples of each prompt of XSTest that can be read, by each way.

    The random choice is the mean over all samples, which is what it gives in expectation.

    Args:
        rows: scored samples, with the columns of `Answers.rows`.
    """
    known = rows.filter((pl.col("benchmark") == XSTEST) & pl.col("refused").is_not_null()).sort("response_id", "sample")
    prompts: list[Samples] = [part.to_dicts() for part in known.partition_by("response_id", maintain_order=True)]
    chosen = {name: pl.DataFrame([max(each, key=way) for each in prompts], known.schema) for name, way in WAYS.items()}
    found = []
    for name, frame in {RANDOM: known, **chosen}.items():
        primary = primary_of(frame)
        if primary is not None:
            found.append(Choice(name, primary, None if name == RANDOM else _against(known, frame)))
    return found


def _against(known: pl.DataFrame, chosen: pl.DataFrame) -> ContrastComparison | None:
    try:
        return compare_contrasts({RANDOM: strata_of(known, chosen)})
    except InputError:  # no prompt in common in one half
        return None
