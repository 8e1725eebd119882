"""Names for two plain types that stand in many signatures."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
"""One row of an artifact or of an input, value by column."""
Json = dict[str, Any]
"""One object of JSON or YAML, value by key."""
