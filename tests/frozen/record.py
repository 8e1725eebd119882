"""Freezes anew what the tests here compare with.

    python -m tests.frozen.record               fingerprints and rows
    python -m tests.frozen.record trees ...     what some unfinished builds left, by their names in unfinished.py

Only for a change that is meant. With another fingerprint nobody's finished or unfinished build is found again: the
generator's number has to rise, and CHANGELOG has to say why. Look at `git diff tests/frozen/data` before you commit.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.conftest import HubServer, StubServer
from tests.frozen.builds import DATA, Builds, Json, fingerprint_of, read_frozen, row_hashes, sha256
from tests.frozen.cases import CASES, TRAININGS
from tests.frozen.unfinished import ANSWERED, PROMPTS, keep


def fingerprints(builds: Builds) -> Json:
    """Build all cases, and return what entered their fingerprints."""
    found: Json = {"builds": {}, "trainings": {}}
    for name in CASES:
        built = builds[name]
        assert built.fingerprint == fingerprint_of(built.counted), f"{name}: the fingerprint covers something else"
        found["builds"][name] = builds.named(built.counted)
    for stage in TRAININGS:
        fingerprint, counted = builds.train(stage)
        assert fingerprint == sha256(counted["counted"]), f"{stage}: the fingerprint covers something else"
        found["trainings"][stage] = builds.named(counted)
    return found


def rows(builds: Builds) -> Json:
    """Return the hashes of all rows."""
    return {name: row_hashes(artifact) for name in CASES if (artifact := builds[name].artifact) is not None}


def keep_unfinished(names: list[str], builds: Builds, stub: StubServer) -> None:
    """Keep what some unfinished builds leave, and how many requests were answered."""
    if not PROMPTS.exists():
        shutil.copytree(builds.artifact("prompts").folder, PROMPTS, ignore=shutil.ignore_patterns(".lock", "*.md"))
    builds.give("prompts", PROMPTS)
    path = f"unfinished/{ANSWERED}"
    answered = read_frozen(path) if (DATA / path).exists() else {}
    for name in names:
        keep(name, builds)
        answered[name] = stub.stats()["requests"]
    write(path, answered)


def write(name: str, data: Json) -> None:
    """Write a file of frozen data."""
    (DATA / name).write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, name) for name in ("builds", "hub")]
        for place in places:
            place.mkdir()
        stub, hub = StubServer(), HubServer(places[1])
        try:
            builds = Builds(places[0], stub, hub)
            if names:
                keep_unfinished(names, builds, stub)
            else:
                write("fingerprints.json", fingerprints(builds))
                write("rows.json", rows(builds))
        finally:
            stub.stop()
            hub.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
