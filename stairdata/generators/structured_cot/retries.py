"""What `--retry-quarantined` asks again, and what went wrong before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from stairdata.generators.structured_cot.plan import BuildStart, refused_of
from stairdata.generators.structured_cot.quality_gate import is_of_the_answer
from stairdata.generators.structured_cot.requests import PROMPT_COLUMNS, TeacherPrompt
from stairdata.runs.inputs import input_rows
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build
from stairdata_schemas.files import write_atomic
from stairdata_schemas.quarantine import quarantine_files

RETRIES = "tries.json"


class RetryRounds(BaseModel):
    """How often a build tried again what it refused; kept beside its journal."""

    mark: str = ""
    """Which quarantine was looked at last."""
    round: int = 0
    failures: dict[int, str] = {}
    """The rule that each prompt broke that is tried again, by its ordinal."""
    rounds: dict[int, int] = {}
    """In which round each was tried last."""


def find_retries(start: BuildStart, tell: Callable[[str], None], *, retry: bool) -> RetryRounds:
    """Return what is to be tried again, and begin a new round where a new quarantine was written."""
    build = start.build
    assert isinstance(build, Build)
    path = build.work / RETRIES
    known = read_retries(build.work)
    if not retry:
        return known
    source = build if refused_of(build) else start.earlier
    if source is None:
        tell("nothing is in quarantine yet; all prompts are asked")
        return known
    mark = _mark(source)
    if mark != known.mark:
        failures = refused_of(source)
        tried = known.rounds | dict.fromkeys(failures, known.round + 1)
        known = RetryRounds(mark=mark, round=known.round + 1, failures=known.failures | failures, rounds=tried)
        write_atomic(path, known.model_dump_json())
    return known


def read_retries(work: Path) -> RetryRounds:
    """Return what was tried again so far, out of a build's folder of work."""
    path = work / RETRIES
    return RetryRounds.model_validate_json(path.read_bytes()) if path.exists() else RetryRounds()


def _mark(there: Build | Artifact) -> str:
    """Tell one writing of the quarantine from the next."""
    files = quarantine_files(there.folder)
    return ",".join(f"{path.stat().st_mtime_ns}-{path.stat().st_ino}" for path in files)


def make_prompts(prompts: Artifact, limit: int | None, retries: RetryRounds, depth: int) -> dict[str, TeacherPrompt]:
    """Read the prompts, and say of those that are tried again what was wrong."""
    asked = {}
    for number, row in enumerate(input_rows(prompts, PROMPT_COLUMNS, limit)):
        rule = retries.failures.get(number)
        # each round and each following artifact asks with a seed of its own
        ask = 0 if rule is None else max(0, depth - 1) + retries.rounds[number]
        failure = rule if rule is not None and is_of_the_answer(rule) else None
        asked[row["prompt_id"]] = TeacherPrompt(**row, failure=failure, ask=ask)
    return asked
