"""Builds that something stopped, and what finishes them.

`data/unfinished` holds what they left: their folders as they were made by the release that came before these tests, and
the prompts that they were made from. Such folders are on users' disks, so these stay as they are. For a state that is
none of them `python -m tests.frozen.record NAME` makes that one alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.frozen.builds import DATA, Builds, Json, counted_of, fingerprint_of
from tests.frozen.cases import ACTOR, JUDGE, TEACHER, TREES, Case, build_command

if TYPE_CHECKING:
    from tests.conftest import StubServer

FOLDER = DATA / "unfinished"
PROMPTS = FOLDER / "prompts" / "1.0.0"
ANSWERED = "answered.json"
"""How many requests of each the stub had answered."""


class Unfinished(NamedTuple):
    """A build that something stopped."""

    stopped: Case
    """What left it."""
    finished: Case
    """What finishes it; where nothing is there, the same commands make the whole."""
    leaves: set[str]
    """What is in its folder of work besides build.json."""


def _stopped_by_budget(tokens: int, leaves: set[str], commands: list[str], recipe: Json, **stub: Any) -> Unfinished:
    stub = {"also": ["other"]} | stub
    stopped = Case([*commands[:-1], f"{commands[-1]} --max-total-tokens {tokens}"], recipe, stub, fails=True)
    return Unfinished(stopped, Case(commands, recipe, stub), {"rows.jsonl", "spent.json"} | leaves)


def _batched(actions: list[str], leaves: set[str], *, fails: bool = False, **stub: Any) -> Unfinished:
    recipe = {"structured_cot": {"teacher": TEACHER | {"retries": 0}}}
    commands = {action: f"{COT} --batch {action}" for action in ("submit", "collect")}
    stopped = Case([commands[action] for action in actions], recipe, stub, fails=fails)
    return Unfinished(stopped, Case([*commands.values()], recipe), {"batches"} | leaves)


COT = build_command("structured-cot", "--input @prompts")
LABELLED = {"sources": [{"path": "without_task.jsonl"}], "task_judge": JUDGE, "concurrency": 1}
TWO = {"teachers": {"plain": TEACHER, "text": TEACHER | {"format": "text"}}, "judge": JUDGE, "concurrency": 2}
AGAIN = {"teacher": TEACHER, "gate": {"max_steps": 2}, "concurrency": 1}
SHORT = TREES | {"max_tokens": 100, "rollout_tokens": 200, "judge": {"max_tokens": 1024}, "concurrency": 2}
ANSWERS = {"n": 2, "max_tokens": 512, "concurrency": 1}

UNFINISHED: dict[str, Unfinished] = {
    "prompts_labelled": _stopped_by_budget(
        1100, set(), [build_command("prompts")], {"prompts": LABELLED}, judge_text="Task: safety"
    ),
    "cot_of_a_teacher": _stopped_by_budget(
        4500, set(), [COT], {"structured_cot": {"teacher": TEACHER, "concurrency": 2}}
    ),
    "cot_of_two_teachers": _stopped_by_budget(
        9500, {"answers.jsonl"}, [f"{COT} --teachers plain,text"], {"structured_cot": TWO}
    ),
    "cot_tried_again": _stopped_by_budget(
        3500, {"tries.json"}, [COT, f"{COT} --retry-quarantined"], {"seed": 0, "structured_cot": AGAIN}
    ),
    "trees": _stopped_by_budget(
        15000, {"running"}, [build_command("trees", "--input @prompts")], {"actor": ACTOR, "trees": SHORT}
    ),
    "responses": _stopped_by_budget(
        1500, set(), [build_command("responses", "--input @prompts")], {"actor": ACTOR, "responses": ANSWERS}
    ),
    "batch_under_way": _batched(["submit"], {"rows.jsonl"}, batches={"ends": "in_progress"}),
    "batch_that_may_be_made": _batched(
        ["submit"], set(), fails=True, batches={"ends": "in_progress"}, lose={"POST /v1/batches": ["drop"]}
    ),
    "batch_after_one_that_expired": _batched(
        ["submit", "submit"], {"rows.jsonl"}, batches={"ends": "expired", "share": 0.5}
    ),
}


def keep(name: str, builds: Builds) -> None:
    """Stop a build, and keep what it leaves."""
    case = UNFINISHED[name].stopped
    builds.reset_stub(case)
    builds.run(name, case)
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    shutil.copytree(builds.folder / name, FOLDER / name, ignore=shutil.ignore_patterns(".lock", "*.md"))


def put_back(name: str, builds: Builds) -> Path:
    """Copy what a stopped build left to where it is to be finished; return its folder of work.

    Two things differ where they stand now: the hash of the tokenizer, with another release of tokenizers, and the mark
    by which a build knows the quarantine that it tries again, made of the file's time and number.
    """
    shutil.copytree(FOLDER / name, builds.folder / name)
    (work,) = (builds.folder / name).glob("*/*/.build")
    plan = json.loads((work / "build.json").read_text(encoding="utf-8"))
    for model in plan["models"]:
        model["tokenizer_hash"] = model["tokenizer_hash"] and builds.values["<tokenizer>"]
    plan["fingerprint"] = fingerprint_of(counted_of(plan))
    (work / "build.json").write_text(json.dumps(plan, indent=2), encoding="utf-8")
    if (work / "tries.json").exists():
        tries = json.loads((work / "tries.json").read_text(encoding="utf-8"))
        (quarantine,) = work.parent.parent.glob("1.0.0/quarantine/*.parquet")
        tries["mark"] = f"{quarantine.stat().st_mtime_ns}-{quarantine.stat().st_ino}"
        (work / "tries.json").write_text(json.dumps(tries), encoding="utf-8")
    return work


def restore_batches(work: Path, stub: StubServer) -> None:
    """Bring the stub to know the batches of a ledger under the ids that they had; ids count from 0."""
    from openai import OpenAI

    jobs = json.loads((work / "batches" / "ledger.json").read_text(encoding="utf-8"))["jobs"]
    requests = {job["file_id"]: (work / "batches" / f"{job['key']}.jsonl").read_bytes() for job in jobs}
    last = max(int(file_id.removeprefix("file-")) for file_id in requests)
    with OpenAI(base_url=stub.base_url, api_key="none", max_retries=0) as client:
        for number in range(last + 1):  # those between are answers, which were fetched long ago
            content = requests.get(f"file-{number:04d}", b"")
            client.files.create(file=("requests.jsonl", content), purpose="batch")
        for job in jobs:
            client.batches.create(
                input_file_id=job["file_id"],
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"stairdata_job": job["key"]},
            )
