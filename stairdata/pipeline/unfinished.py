"""What was begun in some folders and is not finished: runs, builds, trainings, and how each goes on."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.llm.batches.ledger import LEDGER, Ledger
from stairdata.pipeline.run import STARTED
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import list_folders
from stairdata_schemas.building import WORK
from stairdata_schemas.errors import ArtifactError
from stairdata_schemas.manifest import MANIFEST_NAME

PARTIAL = ".partial"
PROGRAMS = {"stairdata", "__main__.py"}
ACTIONS = {"submit", "status", "collect", "cancel"}
"""What may stand after `--batch`."""


class UnfinishedWork(NamedTuple):
    """Something that was begun here."""

    what: str
    """`run`, `build` or `training`."""
    name: str
    """Of an artifact its reference, otherwise its folder."""
    folder: str
    state: str
    """`running` (a process is at it), `refused` (too many rows were), `batches` (a server has them), or `stopped`."""
    done: dict[str, int]
    """Lines of journals, checkpoints, or open batches."""
    command: str | None
    """That goes on with it; None where an earlier release or a program of the user's began it."""


def find_unfinished_work(roots: Sequence[Path], runs: Sequence[Path], outputs: Sequence[Path]) -> list[UnfinishedWork]:
    """Look at folders without changing them.

    Args:
        roots: folders of artifacts.
        runs: folders of runs.
        outputs: folders that trainings work in, `<output>.partial`.
    """
    return [
        *(_run(folder) for folder in runs if (folder / STARTED).is_file()),
        *(
            _build(f"{kind}@{version}", folder)
            for root in roots
            for kind, version, folder in list_folders(root)
            if not (folder / MANIFEST_NAME).is_file()
        ),
        *(_training(folder) for folder in outputs),
    ]


def _run(folder: Path) -> UnfinishedWork:
    started = _read(folder / STARTED)
    state = "running" if is_held(folder / ".lock") else "stopped"
    return UnfinishedWork("run", str(folder), str(folder), state, {}, command_of(started))


def _build(name: str, folder: Path) -> UnfinishedWork:
    started = _read(folder / WORK / "build.json")
    done = {path.name: count for path in sorted((folder / WORK).glob("*.jsonl")) if (count := _lines(path))}
    batches = sum(map(_open_batches, (folder / WORK).glob(f"*/{LEDGER}")))
    if is_held(folder / ".lock"):
        state = "running"
    elif (folder / "quarantine").is_dir():
        state = "refused"
    else:
        state = "batches" if batches else "stopped"
    done |= {"open batches": batches} if batches else {}
    return UnfinishedWork("build", name, str(folder), state, done, command_of(started, collect=state == "batches"))


def _training(partial: Path) -> UnfinishedWork:
    started = _read(partial / STARTED).get("started")
    output = partial.with_name(partial.name.removesuffix(PARTIAL))
    checkpoints = len(list(partial.glob("checkpoints/checkpoint-*")))
    state = "running" if is_held(output.with_name(f"{output.name}.lock")) else "stopped"
    done = {"checkpoints": checkpoints} if checkpoints else {}
    return UnfinishedWork("training", str(output), str(partial), state, done, command_of(started))


def command_of(started: Any, *, collect: bool = False) -> str | None:
    """Return the command that goes on with what another began; None if that was no `stairdata`.

    Args:
        started: what `own_command` wrote.
        collect: fetch the answers of batches.
    """
    try:
        program, *arguments = map(str, started["argv"])
        begun_in = Path(started["cwd"])
    except (TypeError, KeyError, ValueError):
        return None
    if Path(program).name not in PROGRAMS:
        return None
    arguments = [each for each in arguments if each != "--fresh"]  # that would start over
    if collect and "--batch" in arguments:
        at = arguments.index("--batch") + 1
        arguments[at : at + (arguments[at : at + 1] != [] and arguments[at] in ACTIONS)] = ["collect"]
    command = shlex.join(["stairdata", *arguments])
    return command if begun_in == Path.cwd() else f"cd {shlex.quote(str(begun_in))} && {command}"


def is_held(lock: Path) -> bool:
    """Tell whether a process holds a lock; none is made."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _open_batches(ledger: Path) -> int:
    with contextlib.suppress(ArtifactError):  # a damaged one is told where it is built
        return sum(job.is_open for job in Ledger(ledger.parent).jobs)
    return 0


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _read(path: Path) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def nearby(folder: Path, name: str) -> Iterator[Path]:
    """Yield paths of a name (or pattern) in a folder and two levels below; not under hidden folders."""
    for depth in ("", "*/", "*/*/"):
        for path in sorted(folder.glob(depth + name)):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts[:-1]):
                yield path
