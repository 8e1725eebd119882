"""How fast pairs are taken out of trees, and how fast published tree files are imported.

    python benchmarks/pairs.py [--folder FOLDER] [--small 200] [--large 20000]

Makes trees of 301 nodes (75 expansions of four children, depth 7 at most, steps of some 250 bytes, rewards of the
published form), writes the small set as a file in the published form, and runs the commands as a user does: import,
build preference-pairs, build prm-pairs, export; then preference pairs of growing numbers of trees up to the large
set. Prints seconds, nodes a second and peak memory of each command. One machine, one run; only ratios inside a run
mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.interop.exporting import export_thu_ml
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, newest
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import Parent

NODES = 301
PUBLISHED_SECONDS = (
    181.0  # the published script: 200 trees of this size, 44,710 pairs, two cores of this machine's kind
)
REWARDS = (-3.0, -1.0, 1.0, 1.5, 2.0, 2.5, 3.0)
WORDS = [
    "the",
    "request",
    "asks",
    "for",
    "safe",
    "advice",
    "about",
    "risk",
    "and",
    "harm",
    "so",
    "a",
    "plain",
    "answer",
]
FORESTS = 200  # different trees; a larger set repeats them under other prompts


class Measured(NamedTuple):
    """One command."""

    seconds: float
    peak_mib: float
    out: str


def tree(rng: random.Random) -> list[dict[str, Any]]:
    """Grow a tree the way the search would, on made-up rewards."""
    nodes = [_node(0, -1, 0, "", quality=0.5, is_terminal=False)]
    leaves = [0]
    while len(nodes) < NODES:
        parent = leaves.pop(rng.randrange(len(leaves)))
        depth = nodes[parent]["depth"] + 1
        for _ in range(4):
            is_terminal = depth >= 3 and (depth == 7 or rng.random() < 0.25)
            quality = min(1.0, max(0.0, nodes[parent]["quality"] + rng.gauss(0, 0.42)))
            nodes.append(_node(len(nodes), parent, depth, _step(rng, is_terminal), quality, is_terminal))
            if depth < 7 and not is_terminal:
                leaves.append(len(nodes) - 1)
    for node in nodes:
        _evaluate(nodes, node, rng)
    return nodes


def _node(node_id: int, parent_id: int, depth: int, step: str, quality: float, is_terminal: bool) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "parent_id": parent_id,
        "depth": depth,
        "step": step,
        "is_terminal": is_terminal,
        "visits": 0,
        "value_sum": 0.0,
        "prior": 1.0,
        "reward": None,
        "rollouts": [],
        "quality": quality,
    }


def _step(rng: random.Random, is_terminal: bool) -> str:
    body = " ".join(rng.choices(WORDS, k=rng.randint(22, 30)))
    if is_terminal:
        return f"\n\n<|Output|>\nFinal Answer:\n{body}\n<|/Output|>"
    return f"\n\n<|Reasoning_step|>\nTitle: Thought {rng.randint(0, 9**6)}:\n{body}\n<|/Reasoning_step|>"


def _evaluate(nodes: list[dict[str, Any]], node: dict[str, Any], rng: random.Random) -> None:
    visits = rng.randint(2, 8) if node["node_id"] else 1
    reward = REWARDS[min(int(node["quality"] * len(REWARDS)), len(REWARDS) - 1)]
    if node["is_terminal"]:
        node["reward"] = reward
    for _ in range(visits):
        at = node["node_id"]
        gained = reward if node["is_terminal"] or rng.random() < 0.7 else rng.choice(REWARDS)
        while at >= 0:
            nodes[at]["visits"] += 1
            nodes[at]["value_sum"] += gained
            at = nodes[at]["parent_id"]


def forest() -> pl.DataFrame:
    """Return the different trees, their prompts numbered."""
    rng = random.Random(42)
    rows = []
    for number in range(FORESTS):
        nodes = tree(rng)
        for node in nodes:
            del node["quality"]
        rows.append(row(number, nodes))
    return pl.DataFrame(rows, schema=polars_schema("trees"))


def row(number: int, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a tree's row."""
    prompt = f"Question {number}: " + " ".join(WORDS)
    prompt_id = identity.prompt_id(prompt)
    return {"tree_id": identity.tree_id(prompt_id, 0), "prompt_id": prompt_id, "prompt": prompt, "nodes": nodes}


def trees(root: Path, count: int, different: pl.DataFrame) -> Artifact:
    """Write an artifact of so many trees."""
    parent = Parent(kind="prompts", version="1.0.0", content_hash="0")
    build = begin_build(BuildPlan("trees", "benchmark/1", {"count": count}, parents=[parent]), root)
    if isinstance(build, Artifact):
        return build
    with build:
        return build.finish(_frames(count, different))


def _frames(count: int, different: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for start in range(0, count, len(different)):
        frame = different.head(count - start)
        named = [row(start + number, []) for number in range(len(frame))]
        columns = {name: [each[name] for each in named] for name in ("tree_id", "prompt_id", "prompt")}
        yield frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def run(*arguments: str | Path) -> Measured:
    """Run a command of ours as a user does, and measure it whole."""
    command = [sys.executable, "-m", "stairdata", *map(str, arguments)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{err}")
    return Measured(seconds, peak_of_children(), out.strip())


def peak_of_children() -> float:
    """Return the largest peak of the processes so far, in MiB; each process here is run by a fresh one of ours."""
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def measured(*arguments: str | Path) -> Measured:
    """Measure a command in a process of its own, so that its peak is its own."""
    command = [sys.executable, __file__, "--run", json.dumps([str(each) for each in arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return Measured(*json.loads(done.stdout))


def report(name: str, trees_: int, found: Measured, root: Path, kind: str | None = None) -> None:
    """Print one line."""
    nodes = trees_ * NODES
    rows = f"{newest(root, kind).manifest.rows:>10,}" if kind else " " * 10
    print(
        f"{name:<22}{trees_:>8,}{nodes:>11,}{rows}{found.seconds:>9.2f}{nodes / found.seconds:>12,.0f}"
        f"{found.peak_mib:>10,.0f}",
        flush=True,
    )


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(*json.loads(options.run))))
        return
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        benchmark(folder, options.small, options.large)
    finally:
        if not options.folder:
            shutil.rmtree(folder)


def benchmark(folder: Path, small: int, large: int) -> None:
    """Measure import, pairs, export, and how pairs grow with the number of trees."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("polars", "pyarrow", "dataframely", "stairdata"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}, {packages}")
    different = forest()
    published = folder / "published.json"
    count = export_thu_ml(trees(folder / "made", small, different), published)
    print(f"{published.name}: {count} trees, {published.stat().st_size / 1e6:.0f} MB")
    print(f"{'command':<22}{'trees':>8}{'nodes':>11}{'pairs':>10}{'seconds':>9}{'nodes/s':>12}{'peak MiB':>10}")
    root = folder / "imported"
    at = ("--root", root)
    report("import", small, measured("import", published, "--from", "thu-ml", "--kind", "trees", *at), root)
    taken = measured("build", "preference-pairs", *at)
    report("build preference-pairs", small, taken, root, "preference_pairs")
    report("build prm-pairs", small, measured("build", "prm-pairs", *at), root, "prm_pairs")
    back = measured("export", "trees", "--to", "thu-ml", folder / "back.json", *at)
    report("export trees", small, back, root)
    for size in (large // 20, large // 4, large):
        grown = folder / f"trees-{size}"
        trees(grown, size, different)
        found = measured("build", "preference-pairs", "--root", grown)
        report("build preference-pairs", size, found, grown, "preference_pairs")
        shutil.rmtree(grown)
    same = published.read_bytes() == (folder / "back.json").read_bytes()
    print(f"export of the import is {'' if same else 'NOT '}the file that was imported, byte for byte")
    if small == FORESTS:
        times = PUBLISHED_SECONDS / taken.seconds
        print(f"published script {PUBLISHED_SECONDS:.0f} s, ours {taken.seconds:.2f} s: {times:.0f} times as fast")


if __name__ == "__main__":
    main()
