"""Structured reasoning by a teacher that answers at once: rows a second and memory, beside distilabel's.

    python benchmarks/teacher.py                                  20,000 prompts, then 2,000 by both
    python benchmarks/teacher.py --kill                           the 20,000 in two runs: the first is killed half-way
    python benchmarks/teacher.py --distilabel PATH/bin/python     an interpreter that has distilabel

distilabel wants other versions than stairdata, so it lives in an environment of its own:
`python -m venv PATH && PATH/bin/pip install 'distilabel[openai]==1.5.3' requests` (which it imports and does not name).

Ours is the whole command, from the start of the process to the finished artifact; distilabel's is its pipeline alone,
its start and its writing left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trees import instant_server, print_machine, show

HERE = Path(__file__).parent
PAIRED = 2000
INSTALL = "pip install 'distilabel[openai]==1.5.3' requests"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--paired", type=int, default=PAIRED, help="rows of the comparison")
    parser.add_argument("--kill", action="store_true", help="kill the build half-way, and run it again")
    parser.add_argument("--distilabel", default=sys.executable, help="interpreter of an environment with distilabel")
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder, instant_server() as url:
        work = Path(folder)
        seconds = build(work / "many", url, options.prompts, kill=options.kill)
        show(f"stairdata: {options.prompts} rows in {seconds:.1f} s, {options.prompts / seconds:.0f} rows/s")
        show(f"  peak memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB")
        if not has_distilabel(options.distilabel):
            show(f"distilabel: not installed in that environment ({INSTALL}); left out")
            return
        ours = options.paired / build(work / "few", url, options.paired)
        theirs = options.paired / run_distilabel(options.distilabel, url, options.paired, work)
        show(f"{options.paired} rows: stairdata {ours:.0f} rows/s, distilabel {theirs:.0f} rows/s, {ours / theirs:.2f}")


def build(folder: Path, url: str, count: int, *, kill: bool = False) -> float:
    """Build from so many prompts with the command; returns its seconds."""
    folder.mkdir()
    rows = (
        {"prompt": f"Question {number}: {'how do I boil water ' * 20}?", "task": ("safety", "helpfulness")[number % 2]}
        for number in range(count)
    )
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}]},
        "structured_cot": {"teacher": {"base_url": url, "model": "actor"}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    stairdata = [sys.executable, "-m", "stairdata", "build"]
    rest = ["--recipe", str(folder / "recipe.yaml"), "--root", str(folder / "artifacts")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*stairdata, "prompts", *rest], check=True, **quiet)  # type: ignore[call-overload]
    began = time.monotonic()
    if kill:
        killed = kill_half_way([*stairdata, "structured-cot", *rest], folder, count)
        how = "killed half-way" if killed else "too few prompts: it ended before it could be killed"
        show(f"  {how}, after {time.monotonic() - began:.1f} s; then run again")
    subprocess.run([*stairdata, "structured-cot", *rest], check=True, **quiet)  # type: ignore[call-overload]
    seconds = time.monotonic() - began
    manifest = json.loads((folder / "artifacts/structured_cot/1.0.0/manifest.json").read_text())
    assert manifest["rows"] == count, manifest["outcomes"]
    return seconds


def kill_half_way(command: list[str], folder: Path, count: int) -> bool:
    """Start a build and kill it when half of its rows are in the journal; tells whether it was still running."""
    journal = folder / "artifacts/structured_cot/1.0.0/.build/rows.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if count_lines(journal) >= count // 2:
                process.kill()
                return True
            time.sleep(0.1)
        return False


def count_lines(path: Path) -> int:
    """Count the lines of a file that may not be there, or be taken away meanwhile."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return sum(1 for _ in file)
    return 0


def has_distilabel(python: str) -> bool:
    """Tell whether an interpreter has distilabel."""
    return subprocess.run([python, "-c", "import distilabel.models"], capture_output=True, check=False).returncode == 0


def run_distilabel(python: str, url: str, count: int, folder: Path) -> float:
    """Run distilabel's pipeline on as many prompts; returns the seconds of its run."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    command = [python, str(HERE / "teacher_distilabel.py"), url, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"distilabel's pipeline failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
