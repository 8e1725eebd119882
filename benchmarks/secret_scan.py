"""How often plain text is taken for a secret, and how fast text is searched for them.

    python benchmarks/secret_scan.py FILE... [--megabytes 100]

Reads the texts of .jsonl and .csv files and searches them for the shapes of secrets, as a push does. Prints the hits
among the different texts, each with what it was taken for, and the time for a column of so many megabytes of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.hub.secrets import TextScanner, scan_texts

MEGABYTE = 10**6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=100)
    options = parser.parse_args()
    texts = sorted({text for path in options.files for text in texts_of(path)})
    size = sum(len(text.encode()) for text in texts)
    hits = list(scan_texts({str(number): text for number, text in enumerate(texts)}, {}))
    sys.stdout.write(f"{len(texts)} different texts, {size / MEGABYTE:.2f} MB, taken for secrets: {len(hits)}\n")
    for hit in hits:
        sys.stdout.write(f"  {hit.what}: {texts[int(hit.where)]!r}\n")
    column = pl.DataFrame({"value": texts * max(1, round(options.megabytes * MEGABYTE / size))})
    began = time.perf_counter()
    TextScanner({}).suspects(column)
    seconds = time.perf_counter() - began
    sys.stdout.write(f"{column['value'].str.len_bytes().sum() / MEGABYTE:.0f} MB searched in {seconds:.2f} s\n")


def texts_of(path: Path) -> Iterator[str]:
    """Yield every text of a file, however deep."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            for row in csv.reader(file):
                yield from filter(None, row)
        else:
            for line in file:
                yield from strings_of(json.loads(line))


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings_of(inner)


if __name__ == "__main__":
    main()
