"""What is called while something takes its time; all packages report by these."""

from __future__ import annotations

from collections.abc import Callable

CountProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is (0: unknown)."""
WaitProgress = Callable[[str, float], None]
"""Called with what takes its time, such as the start of a server, and the seconds it has taken so far."""
