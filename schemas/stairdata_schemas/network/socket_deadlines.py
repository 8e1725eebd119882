"""A wall clock for what is read from a socket by code that knows only a time limit for each read."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class SocketDeadline:
    """Shuts sockets down when the time of a block is over, so that whoever reads from one gets an error.

    Args:
        seconds: that the block may take.

    Attributes:
        is_over: the time has passed.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self.watch(None)

    def watch(self, connected: socket.socket | None) -> None:
        """Shut this socket down instead of the one before."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            # a copy: TLS takes the descriptor out of the original
            self._socket = connected.dup() if connected is not None else None
        if self.is_over:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        with self._lock, contextlib.suppress(OSError):  # closed by the other side
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
