"""Searches one target for faults, in a process of its own with a limit on its memory: TARGET SECONDS FOLDER.

FOLDER gets `current`, the input that is being read, and each fault's smallest input with what went wrong.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.security.fuzz.targets import TARGETS, Target, find_fault

ROOM = 4 * 2**30
"""Bytes of address space beyond what the process has at its start."""
EXAMPLES = 300


class FoundError(Exception):
    """An input that fails in a new way, for hypothesis to make it smaller."""


class TimeIsOverError(KeyboardInterrupt):
    """Ends a search; hypothesis lets it through."""


def search(target: Target, seconds: float, folder: Path) -> int:
    """Read inputs until the time is over; return how many."""
    end, count = time.monotonic() + seconds, 0
    settled: set[str] = set()
    smallest: dict[str, int] = {}
    options = settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    current = folder / "current"

    def try_one(data: bytes) -> None:
        nonlocal count
        if time.monotonic() > end:
            raise TimeIsOverError
        count += 1
        current.write_bytes(data)
        fault = find_fault(target, data)
        if fault is None:
            return
        if len(data) < smallest.get(fault.name, sys.maxsize):
            smallest[fault.name] = len(data)
            (folder / f"{fault.name}.seed").write_bytes(data)
            (folder / f"{fault.name}.txt").write_text(fault.detail, encoding="utf-8", errors="backslashreplace")
        if fault.name not in settled and fault.name not in {"slow", "memory"}:  # these take long to make smaller
            settled_now.add(fault.name)
            raise FoundError

    while time.monotonic() < end:
        settled_now: set[str] = set()
        with suppress(FoundError, TimeIsOverError):
            seed(random.getrandbits(64))(options(given(target.inputs)(try_one)))()
        settled |= settled_now
    return count


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    name, seconds, folder = sys.argv[1:]
    _limit_memory()
    print(search(TARGETS[name], float(seconds), Path(folder)))  # noqa: T201
