"""How this process was started, for whoever has to start the same work again."""

from __future__ import annotations

import os
import sys

from stairdata_schemas.aliases import Json
from stairdata_schemas.secrets.redaction import redact


def own_command() -> Json:
    """Return id, arguments (without secrets) and folder of this process; unfinished work keeps them, nothing else."""
    return {"pid": os.getpid(), "argv": [redact(argument) for argument in sys.argv], "cwd": os.getcwd()}  # noqa: PTH109
