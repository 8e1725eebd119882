"""Names for plain types that many signatures have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
"""One row of an artifact or of an input, value by column."""
Json = dict[str, Any]
"""One object of JSON or YAML, value by key."""
CountProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is (0: unknown)."""
WaitProgress = Callable[[str, float], None]
"""Called with what takes its time, such as the start of a server, and the seconds it has taken so far."""
