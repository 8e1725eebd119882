"""The benchmarks run: in small here, at the sizes of docs/performance.md by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trees.py", "instant", "--trees", "3", "--iterations", "6"), "ms of CPU a completion"),
        (("trees.py", "memory", "--trees", "3", "--iterations", "6"), "peak memory"),
        (("pairs.py", "--small", "4", "--large", "20"), "build preference-pairs"),
        (("teacher.py", "--prompts", "60", "--paired", "20", "--kill"), "rows/s"),
        (("prompts.py", "--prompts", "300", "--stream", "1000"), "10,000 out of 1,000"),
        (("hub.py", "--gigabytes", "0.004"), "lfs pull:"),
    ],
    ids=["instant", "memory", "pairs", "teacher", "prompts", "hub"],
)
def test_a_benchmark_runs(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    script, *rest = arguments
    command = [sys.executable, str(ROOT / "benchmarks" / script), *rest]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=True)
    assert words in done.stdout
