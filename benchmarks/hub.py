"""What publishing and fetching cost beside the bare client: push against create_commit, pull against snapshot_download.

    python benchmarks/hub.py [--gigabytes 2] [--lane lfs|xet] [--repeats 3] [--rate 50]

The Hub is the tests' own, in a process on this machine, so the network costs nothing and every overhead of ours
shows. Each side runs in a process of its own; its peak memory is that process's. A push is measured twice: the first
one reads every row, unless the artifact's build did (as it does on the command line); the next one, of the same bytes
to a Hub that forgot them, finds the note of that. Both leave the view out, so that they send what the bare client
sends; a third push makes the view, of pairs about as many bytes again. Printed are seconds, CPU seconds of the client
and of the server (which shares the cores), the ratio of ours to bare, and the ratio without
the checks that the bare client does not make: of a push all that happens before the first byte, of a pull the rows (its
"without checks" is a run of its own that compares the hashes alone). With --repeats the medians are printed last. With
--rate the Hub sends and takes no more than that, as over a network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import polars as pl

ROOT = Path(__file__).parent.parent
ROW_BYTES = 8000
BARE_PUSH = """
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi()
api.create_repo("org/bare", repo_type="dataset", private=True)
files = [path for path in sorted(FOLDER.rglob("*")) if path.is_file() and not path.name.startswith(".")]
operations = [CommitOperationAdd(path.relative_to(FOLDER).as_posix(), str(path)) for path in files]
commit = api.create_commit("org/bare", operations, commit_message="bare", repo_type="dataset")
api.create_tag("org/bare", tag="v1.0.0", revision=commit.oid, repo_type="dataset")
"""
BARE_PULL = """
from huggingface_hub import snapshot_download
snapshot_download("org/bare", repo_type="dataset", revision="v1.0.0", local_dir=TARGET)
"""
OUR_PUSH = """
import matplotlib.figure
from stairdata.hub.content import PushOptions, prepare
from stairdata.hub.push import make_plan, publish
from stairdata_schemas.artifacts import open_artifact
release = prepare(open_artifact(FOLDER), PushOptions("org/ours", views=False))
split()
publish(make_plan(release))
"""
PUSH_WITH_VIEW = OUR_PUSH.replace("views=False", "views=True")
HASHES_ALONE = """
import stairdata.hub.pull as module
from stairdata_schemas.artifacts import Problem
from stairdata_schemas.manifest import sha256_of_file
def hashes_alone(artifact, entry, _):
    found = sha256_of_file(artifact.folder / entry.path)
    return [] if found == entry.sha256 else [Problem(entry.path, "sha256", 1, found)]
module.validate_file, module.validate_whole = hashes_alone, lambda artifact: []
"""
OUR_PULL = """
from stairdata.hub.addresses import Address
from stairdata.hub.pull import pull
pull(Address("org/ours", "v1.0.0"), TARGET)
"""
FRAME = """
import json, os, sys, time
from pathlib import Path
FOLDER, TARGET = Path(sys.argv[1]), Path(sys.argv[2])
import huggingface_hub.hf_api, stairdata_schemas.artifacts, stairdata.hub.push, stairdata.hub.pull
def peak():  # of this process alone: ru_maxrss would begin with its parent's
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
def cpu():  # of all its threads, and of the processes that it started and that ended
    return sum(os.times()[:4])
idle = peak()
used = cpu()
marks = [time.monotonic()]
def split():
    marks.append(time.monotonic())
{body}
split()
print(json.dumps({{"seconds": marks[-1] - marks[0], "checks": marks[1] - marks[0] if len(marks) > 2 else 0,
                  "cpu": cpu() - used, "peak_mb": peak() / 1000, "idle_mb": idle / 1000}}))
"""


def make_artifact(root: Path, gigabytes: float) -> Path:
    """Write preference pairs of random text, which does not compress to nothing: about 0.8 bytes a character."""
    from stairdata_schemas.building import Build, BuildPlan, begin_build

    build = begin_build(BuildPlan("preference_pairs", "benchmark/1", {"gigabytes": gigabytes}, license="mit"), root)
    assert isinstance(build, Build)
    with build:
        return build.finish(_frames(gigabytes * 1e9)).folder


def _frames(wanted: float) -> Any:
    import base64

    from stairdata_schemas import identity
    from stairdata_schemas.kinds import polars_schema

    rows, made = 0, 0.0
    while made < wanted:
        batch = []
        for index in range(rows, rows + 512):
            prompt, tree = f"Question {index}?", f"{index:016x}"
            chosen, rejected = (base64.b64encode(os.urandom(ROW_BYTES * 3 // 8)).decode() for _ in range(2))
            batch.append(
                {
                    "pair_id": identity.pair_id(tree, 1, 2, "step"), "tree_id": tree,
                    "prompt_id": identity.prompt_id(prompt), "prompt": prompt, "task": "safety",
                    "chosen": chosen.replace("A", " "), "rejected": rejected.replace("A", " "),
                    "prefix_length": 0, "depth": 1, "chosen_value": 1.0, "rejected_value": 0.0, "margin": 1.0,
                    "chosen_visits": 4, "rejected_visits": 4, "chosen_is_terminal": False,
                    "rejected_is_terminal": False, "chosen_node_id": 1, "rejected_node_id": 2, "granularity": "step",
                }
            )  # fmt: skip
        rows += 512
        made += 512 * ROW_BYTES * 0.77
        yield pl.DataFrame(batch, schema=polars_schema("preference_pairs"))


def run(body: str, folder: Path, target: Path, environment: dict[str, str]) -> dict[str, float]:
    """Run one side in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FRAME.format(body=body), str(folder), str(target)],
        check=True, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def cpu_of(process: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--lane", choices=["lfs", "xet"], default="lfs")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0, help="megabytes a second of the link; default: no limit")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="stairdata-bench-", dir=given.folder))
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.hub", str(work / "hub")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        measure(url, server.pid, work, given)
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(work)


def measure(url: str, server: int, work: Path, given: argparse.Namespace) -> None:
    """Make the artifact, and run all sides on it as often as asked."""
    started = time.monotonic()
    folder = make_artifact(work / "artifacts", given.gigabytes)
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    shards, seconds = len(list(folder.rglob("*.parquet"))), time.monotonic() - started
    say(f"{size / 1e9:.2f} GB in {shards} shards, made in {seconds:.0f} s")
    repeats = [Sides(url, server, work, folder, given).run() for _ in range(given.repeats)]
    if given.repeats > 1:
        say(f"medians of {given.repeats}:")
        report(
            given.lane,
            {
                side: {key: median(repeat[side][key] for repeat in repeats) for key in repeats[0][side]}
                for side in repeats[0]
            },
        )


class Sides:
    """Bare and ours, one after the other; the server forgets in between, so that every upload is whole."""

    def __init__(self, url: str, server: int, work: Path, folder: Path, given: argparse.Namespace) -> None:
        from stairdata.cli.main import ENVIRONMENT

        self.url, self.server, self.work, self.folder, self.lane = url, server, work, folder, given.lane
        self.options = {"xet": given.lane == "xet", "rate": given.rate * 1e6}
        self.bare = os.environ | {
            "HF_ENDPOINT": url, "HF_TOKEN": "hf_test_write", "HF_HOME": str(work / "home"), "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_XET_TELEMETRY_ENABLED": "0",
            "HF_HUB_DISABLE_XET": str(int(given.lane == "lfs")), "STAIRDATA_CACHE": str(work / "cache"),
            "BENCHMARK_API_KEY": "a secret that no row holds",
        }  # fmt: skip
        self.ours = ENVIRONMENT | self.bare  # as the command line sets it

    def run(self) -> dict[str, dict[str, float]]:
        """Return the figures of each side."""
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        found = {"bare push": self._push(BARE_PUSH, self.bare), "bare pull": self._run(BARE_PULL, self.bare)}
        found["first push"] = self._push(OUR_PUSH, self.ours)
        found["push"] = self._push(OUR_PUSH, self.ours)
        found["view push"] = self._push(PUSH_WITH_VIEW, self.ours)
        found["pull"] = self._run(OUR_PULL, self.ours)
        hashes = self._run(HASHES_ALONE + OUR_PULL, self.ours)
        found["pull"]["checks"] = found["pull"]["seconds"] - hashes["seconds"]
        report(self.lane, found)
        return found

    def _push(self, body: str, environment: dict[str, str]) -> dict[str, float]:
        httpx2.post(f"{self.url}/_control", json={"reset": "all", **self.options})
        return self._run(body, environment)

    def _run(self, body: str, environment: dict[str, str]) -> dict[str, float]:
        shutil.rmtree(self.work / "home", ignore_errors=True)  # Xet remembers there what it has sent
        before = cpu_of(self.server)
        try:
            figures = run(body, self.folder, self.work / "pulled", environment)
            return figures | {"server_cpu": cpu_of(self.server) - before}
        finally:
            shutil.rmtree(self.work / "pulled", ignore_errors=True)


def report(lane: str, found: dict[str, dict[str, float]]) -> None:
    """Print the figures of one run, or medians."""
    for name, ours in found.items():
        line = f"{lane} {name}: {ours['seconds']:.1f} s, {ours['peak_mb']:.0f} MB at most"
        line += f", CPU {ours['cpu']:.1f} s, of the server {ours['server_cpu']:.1f} s"
        if not name.startswith("bare"):
            bare = found[f"bare {name.split()[-1]}"]["seconds"]
            ratio, without = ours["seconds"] / bare, (ours["seconds"] - ours["checks"]) / bare
            line += f" ({ours['idle_mb']:.0f} imports), of which checks {ours['checks']:.1f} s; ratio {ratio:.2f}"
            line += f", without checks {without:.2f}"
        say(line)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
