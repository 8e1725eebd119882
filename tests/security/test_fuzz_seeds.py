"""Inputs that a reader once failed over, or that are known to be nasty: `make fuzz` keeps them, here they are read."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st

from stairdata_schemas.errors import InputError
from tests.security.fuzz.targets import SEEDS, TARGETS, Target, find_fault
from tests.security.fuzz.worker import search

ALL = sorted(path for path in SEEDS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_seed_is_read_or_refused(path: Path) -> None:
    assert find_fault(TARGETS[path.parent.name], path.read_bytes()) is None


def test_each_target_has_a_seed() -> None:
    assert {path.parent.name for path in ALL} == set(TARGETS)


def _raises(error: BaseException) -> Target:
    def read(data: bytes, folder: Path) -> None:
        raise error

    return Target(st.binary(), read)


def test_an_error_that_is_no_users_business_is_a_fault() -> None:
    fault = find_fault(_raises(RecursionError("deep")), b"")
    assert fault is not None
    assert fault.name.startswith("RecursionError-")
    assert find_fault(_raises(InputError("no")), b"") is None


def test_memory_that_was_refused_is_a_fault_whatever_is_said() -> None:
    error = InputError("it is damaged")
    error.__cause__ = MemoryError()
    fault = find_fault(_raises(error), b"")
    assert fault is not None
    assert fault.name == "memory"


def test_what_takes_long_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.security.fuzz.targets.SLOWEST", 0.0)
    fault = find_fault(Target(st.binary(), lambda _, __: None), b"")
    assert fault is not None
    assert fault.name == "slow"


@pytest.mark.slow
def test_a_search_keeps_the_smallest_input_of_each_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # by the processor's time, so that a busy machine searches as long
    monkeypatch.setattr("tests.security.fuzz.worker.time", SimpleNamespace(monotonic=time.process_time))

    def read(data: bytes, folder: Path) -> None:
        if len(data) > 2:
            raise KeyError("long")
        if data[:1] == b"x":
            raise TypeError("x")

    assert search(Target(st.binary(max_size=9) | st.just(b"xy"), read), 2.0, tmp_path) > 0
    found = sorted((path.name.partition("-")[0], len(path.read_bytes())) for path in tmp_path.glob("*.seed"))
    assert found in ([("KeyError", 3), ("TypeError", 1)], [("KeyError", 3), ("TypeError", 2)])
