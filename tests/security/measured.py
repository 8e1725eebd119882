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


class Measured(NamedTuple):
    """How a command ended."""

    code: int
    """Exit status; minus the signal's number where a signal ended it, as after `limit` seconds."""
    stdout: str
    stderr: str
    peak: int
    """Most bytes of memory that it, or a process that it started and waited for, held at one time."""
    seconds: float


def run_measured(
    command: Sequence[str], folder: Path, *, limit: float, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run a command in a folder, and end it with all that it started after `limit` seconds.

    Args:
        command: program and arguments, such as `[*STAIRDATA, "pull", "somebody/prompts"]`.
        folder: where it runs; what it says is kept in two files there until it has ended.
        limit: wall clock, in seconds.
        environment: added to this process's own.
    """
    said, complained = folder / ".measured.stdout", folder / ".measured.stderr"
    began = time.monotonic()
    with said.open("wb") as stdout, complained.open("wb") as stderr:
        process = subprocess.Popen(
            list(command),
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
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    out, err = said.read_text("utf-8", "replace"), complained.read_text("utf-8", "replace")
    said.unlink()
    complained.unlink()
    return Measured(process.returncode, out, err, usage.ru_maxrss * 1024, time.monotonic() - began)
