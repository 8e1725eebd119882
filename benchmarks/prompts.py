"""What building prompts costs: near duplicates, evaluation prompts, languages, sampling from a long stream.

    python benchmarks/prompts.py [--prompts 50000] [--stream 1000000] [--count 10000]
    python benchmarks/prompts.py --templates [--prompts 50000]

Made-up prompts with the lengths that UltraFeedback and PKU-SafeRLHF have about (half of 15 to 40 words, half of 40 to
400), a tenth of them repeats of another one with a word changed. With `--templates`, what is hardest for near
duplicates: prompts of 500 characters, half of them in ten templates, and those of one template just below the threshold
of each other; measured at that number of prompts and at twice as many. Each part is a process of its own, so that its
peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTS: dict[str, dict[str, Any]] = {
    "read, check, exact duplicates": {},
    "with near duplicates": {"near_duplicates": {}},
    "with 1,000 evaluation prompts": {"decontaminate": ["evaluation.jsonl"]},
    "with languages": {"languages": ["en"], "min_language_probability": 0},  # the words are of none; all are kept
}


TEMPLATES = 10
LENGTH = 500
FILLED = 66
"""Characters of a template's prompt that are its own: two such have a Jaccard index of about 0.77."""


def vocabulary(rng: random.Random) -> list[str]:
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "il")]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(20_000)]


def text(rng: random.Random, words: list[str], length: int) -> str:
    return " ".join(rng.choices(words, k=length // 2))[:length]


def in_templates(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    words = vocabulary(rng)
    templates = [text(rng, words, LENGTH - FILLED - 1) for _ in range(TEMPLATES)]
    for number in range(count):
        if number % 2:
            yield f"{rng.choice(templates)} {text(rng, words, FILLED)}"
        else:
            yield text(rng, words, LENGTH)


def prompts(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    words = vocabulary(rng)
    last: list[str] = []
    for number in range(count):
        if number % 10 == 9:
            last[rng.randrange(len(last))] = rng.choice(words)
        else:
            last = rng.choices(words, k=rng.randint(15, 40) if number % 2 else rng.randint(40, 400))
        yield " ".join(last)


def write(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for prompt in texts:
            file.write(json.dumps({"prompt": prompt, "task": "safety"}) + "\n")


def run_part(folder: Path, section: dict[str, Any]) -> None:
    from stairdata.generators.prompts.build import build_prompts
    from stairdata.recipe import Recipe
    from stairdata.runs.options import BuildOptions

    begin = time.perf_counter()
    artifact = build_prompts(Recipe.model_validate({"prompts": section}), BuildOptions(root=folder / "artifacts"))
    print(json.dumps({
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time(),
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows": artifact.manifest.rows,
        "refused": artifact.manifest.quarantine,
    }))  # fmt: skip


def measure(folder: Path, name: str, section: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", json.dumps(section), "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{name:<34}{found['seconds']:8.1f} s {found['cpu']:8.1f} s of CPU {found['mib']:6.0f} MiB "
        f"{found['rows']:9,} rows  {found['refused']}",
        flush=True,
    )
    return found


def measure_templates(folder: Path, count: int) -> None:
    taken = []
    for rows in (count, 2 * count):
        write(folder / "templates.jsonl", in_templates(rows, 4))
        section = {"sources": [{"path": "templates.jsonl"}], "near_duplicates": {}}
        taken.append(measure(folder, f"{rows:,}, half in {TEMPLATES} templates", section))
    once, twice = taken
    print(f"twice the prompts: {twice['seconds'] / once['seconds']:.2f} times the time, "
          f"{twice['cpu'] / once['cpu']:.2f} times the CPU time")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--stream", type=int, default=1_000_000, help="rows; a tenth of them are measured first")
    parser.add_argument("--count", type=int, default=10_000, help="prompts sampled from the stream")
    parser.add_argument("--templates", action="store_true", help="only prompts in templates, and twice as many")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.part:
        run_part(arguments.folder, json.loads(arguments.part))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.templates:
            measure_templates(folder, arguments.prompts)
            return
        write(folder / "prompts.jsonl", prompts(arguments.prompts, 1))
        write(folder / "evaluation.jsonl", prompts(1000, 2))
        for part, more in PARTS.items():
            measure(folder, part, {"sources": [{"path": "prompts.jsonl"}], **more})
        for rows in (arguments.stream // 10, arguments.stream):
            write(folder / "stream.jsonl", prompts(rows, 3))
            sample = {"path": "stream.jsonl", "count": arguments.count}
            measure(folder, f"{arguments.count:,} out of {rows:,}", {"sources": [sample]})


if __name__ == "__main__":
    main()
