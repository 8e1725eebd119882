"""What a terminal obeys never reaches it, and JSON has the same values as in a pipe."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from stairdata.cli.console import emit
from stairdata.cli.show import _cell

OBEYED = "\x9b31m \u202e \u2028 \x7f \u200b \U000e0041 日本 😀"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_json_on_a_terminal_and_in_a_pipe(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    emit(json.dumps({"prompt": OBEYED}, ensure_ascii=False))
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"prompt": OBEYED}
    assert "日本 😀" in shown
    assert any(character in shown for character in "\x9b\u202e\u2028\x7f\u200b\U000e0041") is not is_terminal


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (datetime(2026, 11, 28, 21, 5, tzinfo=UTC), "'2026-11-28T21:05:00+00:00'"),
        (date(2026, 11, 28), "'2026-11-28'"),
        (timedelta(seconds=61), "'0:01:01'"),
        (Decimal("1.50"), "'1.50'"),
        ([{"at": date(2026, 11, 28)}], "'[{'at': '2026-11-28'}]'"),
        (True, "'True'"),
        ("a\x9b", "'a\\x9b'"),
    ],
)
def test_cells_of_every_type(value: object, shown: str) -> None:
    assert _cell(value) == shown
