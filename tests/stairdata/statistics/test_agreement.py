"""Agreement with labels, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stairdata.statistics.agreement import kappas, measure_agreement
from stairdata_schemas.errors import InputError


def rows(hit: int, false: int, missed: int, left: int) -> tuple[list[bool], list[bool], list[str]]:
    labels = [True] * hit + [False] * false + [True] * missed + [False] * left
    verdicts = [True] * (hit + false) + [False] * (missed + left)
    return labels, verdicts, [str(each) for each in range(len(labels))]


def test_figures_of_a_table_of_two_by_two() -> None:
    """Kappa of 20, 5, 10, 15 is the worked example of many textbooks: (0.7 - 0.5) / (1 - 0.5)."""
    found = measure_agreement(*rows(20, 5, 10, 15))
    assert found.kappa is not None
    assert found.precision is not None
    assert found.recall is not None
    assert (found.true_positives, found.false_positives, found.false_negatives, found.true_negatives) == (20, 5, 10, 15)
    assert found.accuracy.mean == pytest.approx(0.7, abs=1e-9)
    assert found.precision.mean == pytest.approx(0.8, abs=1e-9)
    assert found.recall.mean == pytest.approx(2 / 3, abs=1e-9)
    assert found.kappa.value == pytest.approx(0.4, abs=1e-9)
    assert (found.kappa.low or 0) == pytest.approx(0.15, abs=0.03)  # 0.4 minus and plus 1.96 standard errors of 0.128
    assert (found.kappa.high or 0) == pytest.approx(0.65, abs=0.03)


def test_what_is_not_defined_is_none() -> None:
    same = measure_agreement([False] * 4, [False] * 4, list("abcd"))
    assert (same.precision, same.recall, same.kappa) == (None, None, None)
    assert same.accuracy.mean == 1
    one = measure_agreement([True, False], [True, False], ["a", "a"])
    assert one.kappa is not None
    assert (one.kappa.value, one.kappa.low) == (1, None)
    assert np.isnan(kappas(np.array([[0.0, 0.0, 0.0, 3.0]]))).all()
    with pytest.raises(InputError, match="no scores"):
        measure_agreement([], [], [])
