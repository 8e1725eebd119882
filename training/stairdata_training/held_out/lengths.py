"""What lengths alone say about held-out pairs: the rule that is to be beaten, and how far margins follow lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation
from typing import Literal

from stairdata_training.held_out.bootstrap import Interval, interval_of_mean
from stairdata_training.held_out.groups import wins
from stairdata_training.tokens import DpoIds, PrmIds


@dataclass(frozen=True, slots=True)
class LengthRule:
    """The better one of two rules: prefer the side with more tokens, or the one with fewer."""

    prefers: Literal["longer", "shorter"]
    accuracy: Interval
    """A tie counts half."""


def length_rule(ids: Sequence[PrmIds] | Sequence[DpoIds], prompt_ids: Sequence[str]) -> LengthRule:
    """Return what preferring the longer or the shorter side gives, whichever is better on these pairs.

    The rule is chosen on the pairs on which it is measured, which favours it: it is what a model has to beat.
    """
    differences = _more_tokens(ids)
    longer = interval_of_mean(wins(differences), prompt_ids)
    if longer.value >= 0.5:
        return LengthRule("longer", longer)
    return LengthRule("shorter", interval_of_mean(wins([-difference for difference in differences]), prompt_ids))


def length_correlation(margins: Sequence[float], ids: Sequence[DpoIds]) -> float | None:
    """Return Pearson's correlation of margins with how many more tokens the chosen side has.

    A policy whose training made all steps less likely, each token by about as much, has a negative one: it prefers the
    shorter side, whatever it says. None where it is not defined: one pair, or no differences.
    """
    try:
        return correlation(margins, _more_tokens(ids))
    except StatisticsError:
        return None


def _more_tokens(ids: Sequence[PrmIds] | Sequence[DpoIds]) -> list[float]:
    return [float(len(pair["chosen_ids"]) - len(pair["rejected_ids"])) for pair in ids]
