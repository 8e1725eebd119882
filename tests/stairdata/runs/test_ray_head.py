"""The head of a Ray cluster vanishes while trees are grown: one message, and finished trees are kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from stairdata_schemas.artifacts import Artifact

if TYPE_CHECKING:
    from tests.conftest import StubServer

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
TREES = 5


class Head(NamedTuple):
    """A cluster of this machine alone."""

    address: str
    folder: str
    """Stands in the command line of each of its processes but of its workers, who end by themselves."""

    def end(self, program: str = "") -> None:
        """Kill its processes whose program has that name, or all."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (process / "cmdline").read_bytes().decode()
                if self.folder in line and line.partition("\0")[0].endswith(program):
                    os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture
def head() -> Iterator[Head]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stairdata[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # short: paths of Unix sockets have 107 bytes at most
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--num-cpus=2"]
    command += ["--include-dashboard=false", f"--temp-dir={folder}", f"--object-store-memory={80_000_000}"]
    started = Head(f"127.0.0.1:{port}", folder)
    try:
        subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
        yield started
    finally:
        started.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_vanished_head_is_one_message_and_the_build_goes_on_later(
    head: Head,
    stub_llm: StubServer,
    actor_section: dict[str, Any],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    trees = {"iterations": 4, "samples": 2, "max_depth": 2, "concurrency": 1}
    recipe.write_text(json.dumps({"actor": actor_section, "trees": trees}), encoding="utf-8")
    command = [sys.executable, "-m", "stairdata", "build", "trees", "--recipe", str(recipe), "--root", str(tmp_path)]
    command += ["--input", str(make_prompts(TREES).folder)]
    stub_llm.control(delay=0.02)
    on_ray = [*command, "--executor", "ray", "--address", head.address]
    build = subprocess.Popen(on_ray, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (kept := _rows_in_journal(tmp_path)) and build.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                build.wait(0.05)
        stub_llm.control(faults={"hang": 1.0})  # no tree is finished from here on
        head.end("gcs_server")
        began = time.monotonic()
        stdout, stderr = build.communicate(timeout=120)
    finally:
        build.kill()
    assert time.monotonic() - began < 40
    assert (build.returncode, stdout) == (1, "")
    (said,) = [line for line in stderr.splitlines() if "error" in line]
    assert said.startswith("error: the head of the Ray cluster at ")
    assert said.endswith(
        f"{head.address.partition(':')[2]}' is gone; finished work is kept: start the cluster again, "
        "unless this command had started it, and run the same command again"
    )
    assert "Traceback" not in stderr
    assert TREES > _rows_in_journal(tmp_path) >= kept > 0
    stub_llm.reset()
    last = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert last.stdout == "trees@1.0.0\n"
    assert len(list(tmp_path.glob("trees/*/.build"))) == 0


def _rows_in_journal(root: Path) -> int:
    return sum(journal.read_bytes().count(b"\n") for journal in root.glob("trees/*/.build/rows.jsonl"))
