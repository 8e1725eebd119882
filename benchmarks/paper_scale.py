"""The paper's number of prompts through every stage, against servers that answer at once: what our own side takes.

    python benchmarks/paper_scale.py --folder FOLDER                          50,000 prompts, trees of 20 iterations
    python benchmarks/paper_scale.py --folder FOLDER --prompts 500            a look at it

Every step is a command of the command line in a process of its own. Printed are its seconds, CPU seconds (ours, without
the server's), peak memory, rows, files and bytes; of a step that asks a model also the seconds from its start until the
first row is written, and from the last row until its end. While trees grow, the process is killed once at 90% of the
rows (a line of its own; "trees" is what the next run took), and the seconds until the next run writes a row are taken.
The last steps publish the trees in 100 shards on a Hub of the tests, list, show, validate and compare. A step that is
finished is not repeated: what was measured is in FOLDER/steps.json, and the builds go on where they were.

The paper has 200 iterations a tree. A tree's work, its row and its memory in flight grow with the iterations, and the
number of rows does not: multiply the CPU seconds and bytes of trees, and of what reads them, by ten, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trees import print_machine, show, small_tokenizer, stand_in

ROOT = Path(__file__).parent.parent
SHARDS = 100
KILLED_AT = 0.9
KILLED = "trees, killed"
HEADS = ("seconds", "CPU s", "MiB", "rows", "files", "MB", "start s", "end s")
POLL_SECONDS = 0.05
COMMAND = (  # the command line with shards of another size, so that there are as many as on a larger machine
    "import sys, stairdata_schemas.writing as writing; writing.SHARD_BYTES = int(sys.argv.pop(1)); "
    "from stairdata.cli.main import main; main()"
)
WORDS = ["people", "often", "ask", "about", "risk", "and", "what", "to", "do", "when", "plans", "change", "late"]
TREES = "trees@1.0.0"


class Step(NamedTuple):
    """One command."""

    name: str
    arguments: tuple[str, ...]
    kind: str | None = None
    """Of the artifact that it makes."""
    asks: bool = False
    """It asks a model, so that it writes rows as they come in."""


def steps(recipe: str) -> list[Step]:
    """Return the steps in their order."""
    return [
        Step("prompts", ("build", "prompts", "--recipe", recipe), "prompts"),
        Step("structured-cot", ("build", "structured-cot", "--recipe", recipe), "structured_cot", asks=True),
        Step("trees", ("build", "trees", "--recipe", recipe), "trees", asks=True),
        Step("preference-pairs", ("build", "preference-pairs", "--recipe", recipe), "preference_pairs"),
        Step("prm-pairs", ("build", "prm-pairs", "--recipe", recipe), "prm_pairs"),
        Step("responses", ("build", "responses", "--recipe", recipe), "responses", asks=True),
        Step(
            "evaluations",
            ("build", "evaluations", "--recipe", recipe, "--input", "responses@1.0.0"),
            "evaluations",
            asks=True,
        ),
        Step("trees again", ("build", "trees", "--recipe", recipe)),
        Step(
            "other pairs",
            ("build", "preference-pairs", "--recipe", recipe, "--set", "preference_pairs.min_visits=3"),
        ),
        Step("list", ("list",)),
        Step("show", ("show", TREES)),
        Step("validate", ("validate", TREES)),
        Step("diff of pairs", ("diff", "preference_pairs@1.0.0", "preference_pairs@1.1.0")),
        Step("diff of trees", ("diff", TREES, TREES)),
        Step("push", ("push", TREES, "--repo", "org/trees")),
        Step("pull", ("pull", "org/trees", "--root", "pulled")),
    ]


def main() -> None:
    """Run what is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="default: a temporary one, and nothing can be continued")
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--shard-bytes", type=int, help="default: so many that the trees have 100 shards, about")
    options = parser.parse_args()
    print_machine()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        url = stack.enter_context(stand_in("instant_server.py", "0.5"))
        hub = stack.enter_context(hub_server(folder / "hub"))
        recipe = write_inputs(folder, url, options)
        shard_bytes = options.shard_bytes or max(1, options.prompts * options.iterations * 300 // SHARDS)
        Scale(folder, hub, options.prompts, shard_bytes).run(steps(recipe))


def write_inputs(folder: Path, url: str, options: argparse.Namespace) -> str:
    """Write prompts and the recipe; the server has another port in each run, which decides no row."""
    source = folder / "source.jsonl"
    if not source.exists():
        with source.open("w", encoding="utf-8") as file:
            for number in range(options.prompts):
                words = " ".join(WORDS[(number // 13**place) % 13] for place in range(4))
                prompt = f"Question {number}: what do {words} mean?"
                file.write(json.dumps({"prompt": prompt, "task": "safety"}) + "\n")  # so that a rule can rate answers
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        small_tokenizer(tokenizer)
    server = {"base_url": url, "model": "actor"}
    recipe = {
        "prompts": {"sources": [{"path": "source.jsonl"}]},
        "structured_cot": {"teacher": server},
        "actor": server | {"tokenizer": "tokenizer"},
        "trees": {"iterations": options.iterations, "judge": {"kind": "rule"}},
        "responses": {"method": "sample", "n": 1},
        "evaluations": {"judge": {"kind": "rule"}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return "recipe.yaml"


@contextlib.contextmanager
def hub_server(folder: Path) -> Iterator[str]:
    """Run the tests' Hub in a process of its own, and give its URL."""
    command = [sys.executable, "-m", "tests.servers.hub", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class Scale:
    """Runs the steps in a folder, and keeps what was measured.

    Args:
        folder: of everything.
        hub: URL of the Hub.
        prompts: how many there are.
        shard_bytes: size from which on a new shard is begun.
    """

    def __init__(self, folder: Path, hub: str, prompts: int, shard_bytes: int) -> None:
        self._folder = folder
        self._prompts = prompts
        self._shard_bytes = shard_bytes
        self._record = folder / "steps.json"
        self._measured: dict[str, dict[str, Any]] = (
            json.loads(self._record.read_text(encoding="utf-8")) if self._record.exists() else {}
        )
        self._environment = os.environ | {
            "HF_ENDPOINT": hub, "HF_TOKEN": "hf_test_write", "HF_HOME": str(folder / "home"), "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "STAIRDATA_CACHE": str(folder / "cache"),
            "OPENAI_API_KEY": "none",
        }  # fmt: skip

    def run(self, wanted: list[Step]) -> None:
        """Run them in order, and print a line for each."""
        show(f"{'step':<18}" + "".join(f"{head:>10}" for head in HEADS))
        for step in wanted:
            if step.name == "trees":
                if KILLED not in self._measured:
                    self._kill(step)
                show(_line(KILLED, self._measured[KILLED]))
            if step.name not in self._measured:
                self._keep(step.name, self._measure(step))
            show(_line(step.name, self._measured[step.name]))
        start = self._measured["trees"].get("start")
        if start is not None:  # else it had ended before it could be killed
            rows = self._measured[KILLED]["rows"]
            show(f"trees were killed at {rows:,} of {self._prompts:,} rows; the next run wrote one after {start:.1f} s")

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        self._measured[name] = found
        self._record.write_text(json.dumps(self._measured, indent=1), encoding="utf-8")

    def _kill(self, step: Step) -> None:
        """Kill a build at a share of its rows."""
        began = time.monotonic()
        watched = Watched(self._start(step), self._folder, step.kind)
        rows = watched.wait_until_rows(int(self._prompts * KILLED_AT))
        watched.process.send_signal(signal.SIGKILL)
        _, usage = watched.end()
        found = _usage(began, usage) | {"rows": rows}
        if watched.first:
            found["start"] = watched.first - began
        self._keep(KILLED, found)

    def _start(self, step: Step) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COMMAND, str(self._shard_bytes), *step.arguments]
        with (self._folder / f"{step.name}.out").open("w", encoding="utf-8") as out:
            return subprocess.Popen(
                command, stdout=out, stderr=subprocess.PIPE, text=True, cwd=self._folder, env=self._environment
            )

    def _measure(self, step: Step) -> dict[str, Any]:
        began = time.monotonic()
        watched = Watched(self._start(step), self._folder, step.kind if step.asks else None)
        status, usage = watched.end()
        ended = time.monotonic()
        if status:
            sys.exit(f"{step.name} failed:\n{watched.said[-3000:]}")
        found = _usage(began, usage)
        if step.kind:
            artifact = self._folder / "artifacts" / step.kind / "1.0.0"
            files = [path for path in artifact.rglob("*") if path.is_file()]
            manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
            size = sum(path.stat().st_size for path in files)
            found |= {"rows": manifest["rows"], "files": len(files), "bytes": size}
        if step.asks and watched.first:
            found |= {"start": watched.first - began, "end": ended - watched.last}
        return found


class Watched:
    """A process whose progress is read, and whose journals are looked at.

    Args:
        process: with a pipe as stderr.
        folder: in which it works.
        kind: of the artifact whose journals tell when rows are written; None where nobody asks.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path, kind: str | None) -> None:
        self.process = process
        self.said = ""
        self.first = self.last = 0.0
        """When the first row was written, and the last one, by the monotonic clock."""
        self._rows = 0
        self._place = folder / "artifacts" / kind if kind else None
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._looker = threading.Thread(target=self._look)
        self._looker.start()

    def wait_until_rows(self, rows: int) -> int:
        """Wait until so many rows are reported."""
        while self._rows < rows and self._reader.is_alive():
            time.sleep(POLL_SECONDS)
        return self._rows

    def end(self) -> tuple[int, Any]:
        """Wait for the end; return the status and the process's usage."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = status
        self._ended.set()
        self._reader.join()
        self._looker.join()
        return status, usage

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r": ([\d,]+) of [\d,]+", line):
                self._rows = int(found[1].replace(",", ""))

    def _look(self) -> None:
        before = None
        while self._place and not self._ended.wait(POLL_SECONDS):
            size = 0
            for path in self._place.glob("*/.build/rows*"):
                with contextlib.suppress(FileNotFoundError):
                    size += path.stat().st_size
            if before is not None and size > before:
                self.first = self.first or time.monotonic()
                self.last = time.monotonic()
            before = max(before or 0, size)


def _usage(began: float, usage: Any) -> dict[str, Any]:
    """Return what a process took that began then and has ended now."""
    return {
        "seconds": time.monotonic() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def _line(name: str, found: dict[str, Any]) -> str:
    cells = [f"{found['seconds']:.1f}", f"{found['cpu']:.1f}", f"{found['peak_mib']:,.0f}"]
    if "rows" in found:
        cells.append(f"{found['rows']:,}")
    if "files" in found:
        cells += [f"{found['files']:,}", f"{found['bytes'] / 1e6:,.0f}"]
    if "start" in found:
        cells += [""] * (len(HEADS) - 2 - len(cells)) + [f"{found['start']:.1f}"]
    if "end" in found:
        cells.append(f"{found['end']:.1f}")
    return f"{name:<18}" + "".join(f"{cell:>10}" for cell in cells)


if __name__ == "__main__":
    main()
