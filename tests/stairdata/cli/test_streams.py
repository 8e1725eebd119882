"""A stream that can't encode a character: it comes out escaped, and never as a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TEXTS = ["naïve", "日本語", "👩🏽 \u200d", "→ ≥ ─"]


@pytest.mark.parametrize(
    "encoding",
    ["ascii:strict", *(pytest.param(each, marks=pytest.mark.slow) for each in ("ascii", "cp1252", "latin-1", "utf-8"))],
)
def test_results_and_messages_reach_any_stream(encoding: str, tmp_path: Path) -> None:
    rows = [{"prompt": text, "task": "safety", "source": text} for text in TEXTS]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "200"}

    code = "import sys; from stairdata.cli.main import main; sys.argv[0] = 'stairdata'; main()"

    def stairdata(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60)

    built = stairdata("build", "prompts", "--root", "r-日本", "--set", "prompts.sources=[{path: p.jsonl}]")
    shown = stairdata("show", "prompts", "--root", "r-日本", "--rows", "4")
    missing = stairdata("show", "日本語-→", "--root", "r-日本")
    for done, status in ((built, 0), (shown, 0), (missing, 1)):
        assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
        assert done.returncode == status, done.stderr
    if encoding == "utf-8":
        assert "日本" in missing.stderr.decode()
    else:
        assert b"\\u65e5\\u672c" in missing.stderr
