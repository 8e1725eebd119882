import signal
import sys
from pathlib import Path

from tests.security.measured import MEBIBYTE, run_measured


def test_peak_memory_and_words_of_a_command(tmp_path: Path) -> None:
    program = "import sys; held = bytearray(300 * 2**20); print('out'); print('err', file=sys.stderr); sys.exit(3)"
    here = bytearray(500 * MEBIBYTE)  # of this process, and none of the command's
    ended = run_measured([sys.executable, "-c", program], tmp_path, limit=60)
    del here
    assert (ended.code, ended.stdout, ended.stderr) == (3, "out\n", "err\n")
    assert 300 * MEBIBYTE < ended.peak < 400 * MEBIBYTE
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_never_ends_is_ended(tmp_path: Path) -> None:
    ended = run_measured([sys.executable, "-c", "while True: pass"], tmp_path, limit=0.5)
    assert ended.code == -signal.SIGKILL
    assert ended.seconds < 60
