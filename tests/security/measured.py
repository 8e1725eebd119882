"""Runs a command in a process of its own and measures it: peak memory, time, and what it said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

STAIRDATA = (sys.executable, "-m", "stairdata")
MEBIBYTE = 2**20
# A process that is started begins with the peak of the one that starts it, and a test process is large: so a small one
# stands between, and writes down status and peak (in KiB).
BETWEEN = """
import os, sys
child = os.spawnvp(os.P_NOWAIT, sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}")
"""


class Measured(NamedTuple):
    """How a command ended."""

    code: int
    """Exit status; minus the signal's number where a signal ended it, as after `limit` seconds."""
    stdout: str
    stderr: str
    peak: int
    """Most bytes of memory that it, or a process that it started and waited for, held at one time; 0 of one that was
    ended after `limit` seconds."""
    seconds: float


def run_measured(
    command: Sequence[str], folder: Path, *, limit: float, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run a command in a folder, and end it with all that it started after `limit` seconds.

    Args:
        command: program and arguments, such as `[*STAIRDATA, "pull", "somebody/prompts"]`.
        folder: where it runs; what it says is kept in files there until it has ended.
        limit: wall clock, in seconds.
        environment: added to this process's own.
    """
    said, complained, ending = (folder / f".measured.{name}" for name in ("stdout", "stderr", "ending"))
    began = time.monotonic()
    with said.open("wb") as stdout, complained.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BETWEEN, str(ending), *command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        process.wait()
    finally:
        timer.cancel()
    code, peak = map(int, ending.read_text().split()) if ending.exists() else (process.returncode, 0)
    out, err = said.read_text("utf-8", "replace"), complained.read_text("utf-8", "replace")
    for path in (said, complained, ending):
        path.unlink(missing_ok=True)
    return Measured(code, out, err, peak * 1024, time.monotonic() - began)
