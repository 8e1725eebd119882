"""What is fuzzed: the inputs of each reader, and what it may do with them.

A reader returns, or raises a StairDataError; it takes at most `SLOWEST` seconds of CPU time for at most 1 MB, and at
most `MOST_MEMORY` bytes. Anything else is a fault.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hypothesis.strategies import SearchStrategy

from stairdata_schemas.errors import StairDataError
from tests.security.fuzz import manifests, parquet_files, recipes, servers

SLOWEST = 15.0
MOST_MEMORY = 2**30
SEEDS = Path(__file__).parent.parent / "seeds"
OURS = ("/stairdata/", "/stairdata_schemas/", "/stairdata_training/", "/fuzz/")


class Target(NamedTuple):
    """A reader and its inputs."""

    inputs: SearchStrategy[bytes]
    read: Callable[[bytes, Path], None]
    """Reads an input; the folder is empty, and its own."""


TARGETS = {
    "manifest": Target(manifests.MANIFESTS, manifests.read_any_manifest),
    "origin": Target(manifests.ORIGINS, manifests.read_any_origin),
    "card": Target(manifests.CARDS, manifests.read_any_card),
    "parquet": Target(parquet_files.FILES, parquet_files.read_any_parquet),
    "chat": Target(servers.answers(servers.CHAT), servers.read_any_chat),
    "completion": Target(servers.answers(servers.COMPLETION), servers.read_any_completion),
    "models": Target(servers.answers(servers.MODELS), servers.read_any_models),
    "batch": Target(servers.answers(servers.BATCH) | servers.answers(servers.BATCHES), servers.read_any_batch),
    "batch_file": Target(servers.BATCH_FILES, servers.read_any_batch_file),
    "recipe": Target(recipes.RECIPES, recipes.read_any_recipe),
    "settings": Target(recipes.SETTINGS, recipes.read_any_settings),
}


class Fault(NamedTuple):
    """What a reader did that it must not do."""

    name: str
    """Alike for inputs that fail alike."""
    detail: str


def find_fault(target: Target, data: bytes) -> Fault | None:
    """Read an input, and say what went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="stairdata-fuzz-"))
    memory, began = peak_memory(), time.process_time()
    try:
        target.read(data, folder)
    except StairDataError as error:
        if any(isinstance(cause, MemoryError) for cause in _causes(error)):
            return Fault("memory", "a reader was refused memory, and says something else")
        str(error).encode("utf-8", "surrogateescape")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - polars panics with one
        return Fault(_place(error), "".join(traceback.format_exception(error)[-12:]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds, grown = time.process_time() - began, peak_memory() - memory
    if seconds > SLOWEST:
        return Fault("slow", f"it took {seconds:.1f} s")
    return Fault("memory", f"it took {grown >> 20} MB") if grown > MOST_MEMORY else None


def peak_memory() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _place(error: BaseException) -> str:
    """Name an error by its type and the innermost line of ours that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(part in frame.filename for part in OURS)]
    last = (ours or frames)[-1]
    return f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
