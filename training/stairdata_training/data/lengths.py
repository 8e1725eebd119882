"""How long the rows of a training are: told before weights are loaded, and kept in training.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class LengthReport:
    """Lengths in tokens; that of a pair is the longer side's, prompt and end of turn included."""

    rows: int
    tokens: int
    """What the model reads in one epoch, without padding: of a pair both sides, each with its prompt."""
    half: int
    """Half of the rows are at most as long."""
    most: int
    """95% of the rows are at most as long."""
    longest: int
    prefix_share: float
    """Share of the tokens in prompts, and in the steps that both sides of a pair share."""
    max_length: int
    too_long: int
    """Rows that are longer than that."""

    def __str__(self) -> str:
        lengths = f"{self.half} (50%), {self.most} (95%), {self.longest} (100%)"
        over = f"; {self.too_long} over max_length {self.max_length}" if self.too_long else ""
        return (
            f"{self.rows} rows, {self.tokens} tokens an epoch, {self.prefix_share:.0%} of them prompts and shared "
            f"steps; lengths {lengths}{over}"
        )


def measure_lengths(
    lengths: Sequence[int], tokens: Sequence[int], prefixes: Sequence[int], max_length: int
) -> LengthReport:
    """Sum up the lengths of rows.

    Args:
        lengths: of each row's longest sequence.
        tokens: what the model reads of each row.
        prefixes: how many of these are prompt, or shared by both sides of a pair.
        max_length: the longest that is trained on.
    """
    sorted_lengths = np.sort(np.asarray(lengths, dtype=np.int64))
    half, most = (int(np.quantile(sorted_lengths, share, method="inverted_cdf")) for share in (0.5, 0.95))
    total = int(np.sum(tokens, dtype=np.int64))
    return LengthReport(
        rows=len(sorted_lengths),
        tokens=total,
        half=half,
        most=most,
        longest=int(sorted_lengths[-1]),
        prefix_share=round(int(np.sum(prefixes, dtype=np.int64)) / max(total, 1), 4),
        max_length=max_length,
        too_long=int((sorted_lengths > max_length).sum()),
    )
