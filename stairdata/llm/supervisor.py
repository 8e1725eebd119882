"""Runs a command that must not outlive its parent: `python -m stairdata.llm.supervisor [--grace S] -- COMMAND...`.

The parent holds the other end of the pipe on stdin. When it goes, however it goes, the pipe ends, and the command
is ended with all that it started: SIGTERM to its process group, and SIGKILL after the grace period. Standard library
only, so that nothing stands between a crash and the clean-up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE = 10.0
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    grace, command = _parse(arguments)
    _adopt_orphans()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    # a session of its own: Ctrl-C in the terminal reaches the parent, which decides
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    _wait(child, wake_read)
    _end_all(child, grace)
    return child.wait()


def _parse(arguments: list[str]) -> tuple[float, list[str]]:
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    return float(options[1]) if options[:1] == ["--grace"] else GRACE, command


def _adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent dies, so that they can be found (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait(child: subprocess.Popen[bytes], wake: int) -> None:
    """Wait for the child's end, the parent's end, or a signal to stop."""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while child.poll() is None:
            for key, _ in selector.select():
                received = os.read(key.fd, 4096)
                if key.fd == 0 and not received:
                    return
                if key.fd == wake and set(received) - {signal.SIGCHLD}:
                    return


def _end_all(child: subprocess.Popen[bytes], grace: float) -> None:
    """End the command and whatever it started, politely and then not."""
    _signal_all(child, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and (child.poll() is None or _descendants()):
        _reap_orphans(child)
        time.sleep(0.05)
    _signal_all(child, signal.SIGKILL)
    _reap_orphans(child)


def _signal_all(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _descendants() -> list[int]:
    """List living processes below this one (Linux; elsewhere the process group has to do)."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        children = _children(pid)
        found += children
        waiting += children
    return found


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        listed = " ".join((task / "children").read_text() for task in tasks)
        return [int(child) for child in listed.split() if _is_alive(int(child))]
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return status[0] != "Z"


def _reap_orphans(child: subprocess.Popen[bytes]) -> None:
    child.poll()
    with contextlib.suppress(ChildProcessError):
        while child.returncode is not None and os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
