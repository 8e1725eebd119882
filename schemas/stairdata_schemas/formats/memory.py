"""A limit on the memory that somebody else's reader may take, where the data goes through no reader of ours."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def held() -> int:
    """Return the bytes of memory of this process that count for its limit on data; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData:"))
    except (OSError, StopIteration, ValueError):
        return 0


@contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Have allocations fail beyond a number of bytes (of `held`) inside; 0 is no limit.

    Raises:
        MemoryError: something inside asked for more, and let that through.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [bound for bound in (most, soft, hard) if bound not in {0, resource.RLIM_INFINITY}]
    if not most or not bounds:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
