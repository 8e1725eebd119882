"""Processes that must not outlive the one that started them.

A `SupervisedProcess` is a command under a supervisor, which is a process that runs this file:

    python -m stairdata_schemas.processes [--grace SECONDS] -- COMMAND [ARGUMENT]...

The process that started it holds the other end of the supervisor's standard input. When that end closes, because it
was closed or its holder died (SIGKILL included), or on SIGTERM, SIGINT or SIGHUP, the command and everything it
started get SIGTERM, and SIGKILL after the grace period. When the command ends by itself, what it left behind is
ended too. The exit status is the command's (128 + N if signal N ended it), or 127 if it can't be started.

Standard library only: a supervisor stays small and starts in a fraction of a second.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
GRACE = 10.0
SLACK = 10.0  # seconds beyond the grace period until the supervisor itself counts as stuck
TICK = 1.0
LOG_TAIL = 200_000  # bytes
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class SupervisedProcess:
    """A command under a supervisor, for the process that starts and ends it.

    Args:
        command: its words.
        log: an open file for all it writes.
        environment: its environment variables, all of them.
        folder: its working directory; default: that of this process.
        grace: seconds that it and what it started have to end by themselves.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: IO[bytes],
        environment: Mapping[str, str],
        folder: Path | None = None,
        grace: float = GRACE,
    ) -> None:
        self._grace = grace
        # by path and isolated: a file in the working directory can't stand in for a module
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", __file__, "--grace", str(grace), "--", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._supervisor.poll()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the end, or so many seconds; return the exit status, or None if it still runs."""
        return wait_for(self._supervisor, seconds)

    def stop(self) -> None:
        """End the command and everything it started; harmless if nothing runs any more."""
        if self._supervisor.stdin is not None:
            self._supervisor.stdin.close()  # tells the supervisor to end everything
        if self.wait(self._grace + SLACK) is None:
            self._supervisor.kill()
            self._supervisor.wait()


def wait_for(process: subprocess.Popen[bytes], seconds: float | None) -> int | None:
    """Wait for the end of a process, or so many seconds; return the exit status, or None if it still runs."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def started_at(pid: int) -> str | None:
    """Return when a process began, in the system's words, or None if there is none: it tells apart equal numbers."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self").exists():
        return None
    shown = subprocess.run(  # macOS
        ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None


def descendants(root: int) -> list[int]:
    """Return the process ids of all that descends from a process; [] where there is no /proc."""
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


def free_port(besides: int = 0) -> int:
    """Return a port of this machine that nobody listens on.

    Args:
        besides: a port that is promised already and not taken yet: another one is returned.
    """
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port != besides:
            return port


def port_obstacle(port: int) -> str | None:
    """Say why nobody can listen on a port of this machine; None if somebody can."""
    with socket.socket() as probe:
        # as servers do: a connection that lingers from the last one is no obstacle
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def log_tail(log: Path) -> str:
    """Return the last 200 kB of a log; "" if it can't be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank; "" if there is none."""
    return next((line.strip() for line in reversed(log_tail(log).splitlines()) if line.strip()), "")


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
        found = set(descendants(os.getpid())) - (told or set())
        for pid in found:
            _send(os.kill, pid, number)
        if told is None:
            _send(os.killpg, self._child.pid, number)
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stairdata_schemas.processes")
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
