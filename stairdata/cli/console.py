"""Words and progress on stderr, results on stdout. Text of prompts and models is never read as markup."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

    from stairdata.runs.progress import Progress

SECONDS_BETWEEN_LINES = 15.0
DELETE = 0x7F  # a control character that JSON leaves as it is


def make_streams_whole() -> None:
    """Let stdout and stderr write every character: those that their encoding lacks come out escaped.

    A C locale or a console of Windows encodes few characters, and text of prompts and models has all of them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def keep_secrets_out_of_stderr() -> None:
    """Let nothing write a secret to stderr: no message, log, warning or traceback; stdout shows what was asked for."""
    from stairdata_schemas.secrets.redaction import RedactingStream

    if not isinstance(sys.stderr, RedactingStream):
        sys.stderr = cast("TextIO", RedactingStream(sys.stderr))


def stderr() -> Console:
    """Return a rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(message: str) -> None:
    """Write a line to stderr."""
    from stairdata_schemas.errors import visible

    stderr().print(visible(message))


def emit(text: str) -> None:
    """Write a result to stdout: as it is into a file or pipe, and so that a terminal obeys nothing in it.

    Escapes are those of JSON, so an object has the same values either way.
    """
    sys.stdout.write((_json_visible(text) if sys.stdout.isatty() else text) + "\n")


def _json_visible(text: str) -> str:
    from stairdata_schemas.errors import visible

    if visible(text) == text:
        return text
    shown = (
        character
        if visible(character) == character
        else json.dumps(character)[1:-1]
        if ord(character) != DELETE
        else "\\u007f"
        for character in text
    )
    return "".join(shown)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Write a table to stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stairdata_schemas.errors import visible

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console(highlight=False, markup=False, emoji=False).print(table)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show a bar on a terminal, and a line now and then elsewhere."""
    console = stderr()
    if not console.is_terminal:
        yield _Lines()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    from stairdata_schemas.errors import visible

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, detail="")

        def update(what: str, done: int, total: int, detail: str = "") -> None:
            shown, more = visible(what), visible(detail)
            bar.update(task, description=shown, completed=done, total=total or None, detail=more)

        yield update


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES or (total and done == total):
            self._last = time.monotonic()
            say((f"{what}: {done} of {total}" if total else what) + (f"; {detail}" if detail else ""))
