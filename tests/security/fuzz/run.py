"""Fuzz the readers: `python -m tests.security.fuzz.run [--seconds N] [TARGET ...]`, N seconds shared by the targets.

Each target runs in a process of its own, so that a crash or a hang costs only that one. Inputs that fail are written
to tests/security/seeds/TARGET, where tests/security/test_fuzz_seeds.py reads them again; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from tests.security.fuzz.targets import SEEDS, TARGETS

PATIENCE = 120.0
"""Seconds that one input may take before its process is ended."""
ROOT = Path(__file__).parents[3]


def fuzz(name: str, seconds: float) -> list[str]:
    """Fuzz a target for some seconds; return what was found, and keep the inputs."""
    found: list[str] = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory(prefix="stairdata-fuzz-") as scratch:
            folder = Path(scratch)
            command = [sys.executable, "-m", "tests.security.fuzz.worker", name, str(left), scratch]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            how = _watch(process, folder / "current")
            count = process.stdout.read().strip() if process.stdout else ""
            if how is None and not count.isdigit():
                how = f"crash: exit status {process.returncode}"
            found += [
                _keep(name, kept.read_bytes(), kept.with_suffix(".txt").read_text(encoding="utf-8"))
                for kept in sorted(folder.glob("*.seed"))
            ]
            current = folder / "current"
            if how is not None and current.exists():
                found.append(_keep(name, current.read_bytes(), how))
            elif how is not None:
                found.append(f"{name}: {how}")
                break
        say(f"{name}: {count or 'an unknown number of'} inputs in {seconds:.0f} s, {len(found)} faults")
    return found


def _watch(process: subprocess.Popen[str], current: Path) -> str | None:
    """Wait for a worker; end it and say so if it takes too long over one input."""
    began = time.time()
    while True:
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            since = max(began, current.stat().st_mtime if current.exists() else began)
            if time.time() - since > PATIENCE:
                process.kill()
                process.wait()
                return f"hang: over {PATIENCE:.0f} s"
        else:
            return None


def _keep(name: str, data: bytes, detail: str) -> str:
    path = SEEDS / name / sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return f"{path.relative_to(ROOT)}: {detail.strip()}"


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them unless some are named")
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    found = [fault for name in names for fault in fuzz(name, given.seconds / len(names))]
    for fault in found:
        say(f"\n{fault}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
