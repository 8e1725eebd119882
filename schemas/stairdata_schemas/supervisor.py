"""Run a command that must not outlive the process that asked for it.

    python -m stairdata_schemas.supervisor [--grace SECONDS] -- COMMAND [ARGUMENT]...

The managing process holds the other end of this program's standard input. When that end closes, because the
manager closed it or died (SIGKILL included), or on SIGTERM, SIGINT or SIGHUP, the command and everything it
started get SIGTERM, and SIGKILL after the grace period. When the command ends by itself, what it left behind is
ended too. The exit status is the command's (128 + N if signal N ended it), or 127 if it can't be started.

Standard library only: this process stays small and starts in a fraction of a second.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

GRACE = 10.0
TICK = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """One child, and all that descends from it.

    On Linux orphans become children of this process, whatever session they moved to, so that they are found and
    waited for. Elsewhere only the child's process group is known.
    """

    def __init__(self, command: Sequence[str], grace: float) -> None:
        self._grace = grace
        self._parent = os.getppid()
        self._status: int | None = None
        self._wakeup = _catch_signals()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # a session of its own: Ctrl-C in the terminal is the manager's to decide on
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 (no threads here)
        )

    def run(self) -> int:
        """Wait for the child's end, or for a reason to end it; return its exit status."""
        watched = [self._wakeup, sys.stdin.fileno()]
        while self._status is None and not self._is_told_to_stop(watched):
            self._reap()
        self._end_all()
        return 1 if self._status is None else self._status

    def _is_told_to_stop(self, watched: list[int]) -> bool:
        ready, _, _ = select.select(watched, [], [], TICK)
        if self._wakeup in ready and set(os.read(self._wakeup, 4096)) & set(STOP_SIGNALS):
            return True
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            return True
        # a sibling forked by the manager may hold the pipe open after the manager's death
        return os.getppid() != self._parent

    def _end_all(self) -> None:
        told = self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while not self._reap():
            left = deadline - time.monotonic()
            if left <= 0:
                self._signal_all(signal.SIGKILL)
            else:
                told |= self._signal_all(signal.SIGTERM, told)  # what was started while the others were told
            # signals wake this up; the upper limit is for processes that are nobody's child here
            if select.select([self._wakeup], [], [], min(max(left, 0.05), 0.2))[0]:
                os.read(self._wakeup, 4096)

    def _reap(self) -> bool:
        """Collect the dead; true if nothing is left alive."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return not _group_exists(self._child.pid)
            if pid == 0:
                return False
            if pid == self._child.pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = self._child.returncode = code if code >= 0 else 128 - code

    def _signal_all(self, number: signal.Signals, told: set[int] | None = None) -> set[int]:
        """Signal all, or those alone that were not told before; return whom."""
        found = set(_descendants(os.getpid())) - (told or set())
        for pid in found:
            _send(os.kill, pid, number)
        if told is None:
            _send(os.killpg, self._child.pid, number)
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, supervise the command, return its status."""
    parser = argparse.ArgumentParser(prog="python -m stairdata_schemas.supervisor")
    parser.add_argument("--grace", type=float, default=GRACE, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args(arguments)
    try:
        supervisor = Supervisor(options.command, options.grace)
    except OSError as error:
        sys.stderr.write(f"{options.command[0]!r} can't be started: {error.strerror}\n")
        return 127
    return supervisor.run()


def _catch_signals() -> int:
    """Turn SIGCHLD and the stop signals into bytes; return the descriptor to read them from."""
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *STOP_SIGNALS):
        signal.signal(number, lambda *_: None)
    return reading


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (OSError, AttributeError):  # no such libc: the process group has to do
        return


def _die_with_parent() -> None:
    # for the case that this program itself is killed with SIGKILL
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, frontier = [], [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of zombies
        return False
    return True


def _send(kill: Callable[[int, int], None], target: int, number: signal.Signals) -> None:
    try:
        kill(target, number)
    except (ProcessLookupError, PermissionError):
        return


if __name__ == "__main__":
    sys.exit(main())
