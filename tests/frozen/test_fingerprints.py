"""What enters the fingerprint of each kind from each source, and the fingerprint itself, are those that were frozen.

A test that fails shows the member that changed. Where the change is meant, the generator's number has to rise, and
CHANGELOG has to say so; then `python -m tests.frozen.record` freezes anew.
"""

from __future__ import annotations

import pytest

from tests.frozen.builds import Builds, difference, fingerprint_of, read_frozen, sha256
from tests.frozen.cases import CASES, TRAININGS

FROZEN = read_frozen("fingerprints.json")


def test_every_case_is_frozen() -> None:
    assert list(FROZEN["builds"]) == sorted(CASES)
    assert list(FROZEN["trainings"]) == sorted(TRAININGS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if case.is_slow else []) for name, case in CASES.items()]
)
def test_a_build_has_the_fingerprint_that_it_had(name: str, builds: Builds) -> None:
    frozen, built = FROZEN["builds"][name], builds[name]
    now = builds.named(built.counted)
    assert now == frozen, difference(frozen, now)
    assert built.fingerprint == fingerprint_of(builds.resolved(frozen))


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAININGS)
def test_a_training_has_the_fingerprint_that_it_had(stage: str, builds: Builds) -> None:
    frozen = FROZEN["trainings"][stage]
    fingerprint, counted = builds.train(stage)
    now = builds.named(counted)
    assert now == frozen, difference(frozen, now)
    assert fingerprint == sha256(builds.resolved(frozen)["counted"])
