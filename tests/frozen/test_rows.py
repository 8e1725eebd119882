"""The rows of each kind from each source are those that were frozen, to the last column but the times.

The deterministic server of tests/servers answers. A test that fails names the columns that changed; where the change
is meant, `python -m tests.frozen.record` freezes anew.
"""

from __future__ import annotations

import pytest

from stairdata_schemas.kinds import KINDS
from tests.frozen.builds import Builds, difference, read_frozen, row_hashes
from tests.frozen.cases import CASES

FROZEN = read_frozen("rows.json")


def test_every_kind_is_frozen() -> None:
    assert list(FROZEN) == sorted(name for name, case in CASES.items() if not case.fails)
    assert {frozen["kind"] for frozen in FROZEN.values()} == set(KINDS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if CASES[name].is_slow else []) for name in FROZEN]
)
def test_a_build_has_the_rows_that_it_had(name: str, builds: Builds) -> None:
    now = row_hashes(builds.artifact(name))
    assert now == FROZEN[name], difference(FROZEN[name], now)
