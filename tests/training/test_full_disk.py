"""A disk that takes no more: each library says so in its own words, and the user gets one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stairdata_schemas.errors import TrainingError
from stairdata_training.output import failures_named

WRITERS = {
    "safetensors": "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(10**6)}, 'w.safetensors')",
    "torch": "import torch; torch.save(torch.zeros(10**6), 'optimizer.pt')",
}
LIMIT = 100_000


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_what_libraries_raise_where_a_file_can_not_grow(writer: str, tmp_path: Path) -> None:
    program = (
        f"import resource\nfrom pathlib import Path\nfrom stairdata_schemas.errors import StairDataError\n"
        f"from stairdata_training.output import failures_named\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))\n"
        f"try:\n    with failures_named(Path('here'), 'sft'):\n        {WRITERS[writer]}\n"
        "except (StairDataError, OSError) as error:\n    print('one message:', error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("one message:")


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(ZeroDivisionError), failures_named(Path("here"), "sft"):
        1 / 0  # noqa: B018
    with pytest.raises(TrainingError, match="make room"), failures_named(Path("here"), "sft"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
