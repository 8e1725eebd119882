"""The spine on the real model: a smoke run that is killed again and again ends like one that was not.

It runs what users install: the wheel, with its extras, in a folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from stairdata.cli.quickstart import find_teacher
from stairdata.llm.vllm_server import vllm_missing
from stairdata.pipeline.quickstart import SMOKE, quickstart_pipeline
from stairdata.runs.progress import quiet
from stairdata_schemas.artifacts import Artifact, list_folders, open_artifact, validate_artifact

if TYPE_CHECKING:
    from tests.conftest import StubServer

ROOT = Path(__file__).parent.parent
PACKAGES = ("stairdata", "stairdata_schemas", "stairdata_training", "stairdata_review")
KINDS = {"prompts": 2, "structured_cot": 1, "trees": 1, "preference_pairs": 1, "prm_pairs": 1, "responses": 4}
LIMIT = 1800.0


def own_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in {"OPENAI_API_KEY", "PYTHONPATH"}}


def start(program: Path, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(program), "quickstart", "--smoke", "--folder", str(folder)],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder.parent,
            env=own_environment(),
        )


def any_of(folder: Path, pattern: str, *, filled: bool = False) -> bool:
    """Tell whether a folder holds such a file, with something in it if need be; it may be taken away meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_size or not filled for path in folder.glob(pattern))
    return False


def kill_when(process: subprocess.Popen[bytes], happens: Callable[[], bool], look_every: float, log: Path) -> None:
    """Kill a process as soon as something is seen to happen, which has to be before its end."""
    deadline = time.monotonic() + LIMIT
    while not happens():
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=look_every)
            raise AssertionError(log.read_text(errors="replace")[-3000:])
    process.send_signal(signal.SIGKILL)
    process.wait()


def processes_of(folder: Path) -> list[str]:
    """List the command lines that name a folder: servers that outlived their parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stairdata` of the wheel, in an environment whose other packages are those of this one, without the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    python = folder / "venv" / "bin" / "python"
    run = [sys.executable, "-m"]
    subprocess.run([*run, "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("stairdata-*.whl")
    venv.create(folder / "venv")
    install = ["--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*run, "pip", "--python", str(python), *install], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    # behind the wheel's packages; the .pth files of that folder, which name the checkout, are not read
    (packages / "extras.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.with_name("stairdata")


@pytest.fixture(scope="module")
def folder(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the smoke quickstart to its end, killed in SFT, in the trees and in a write."""
    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("quickstart")
    log = folder.with_suffix(".log")
    artifacts, models = folder / "artifacts", folder / "models"
    moments: list[tuple[Callable[[], bool], float]] = [
        (lambda: "train sft (loss" in log.read_text(errors="replace"), 0.5),
        (lambda: any_of(artifacts, "trees/*/.build/running/*.jsonl", filled=True), 0.1),
        # a write takes milliseconds: if it was over before it was seen, the kill comes right behind it
        (lambda: any_of(artifacts, "trees/*/.build/data") or (models / "dpo-1.partial").exists(), 0.0005),
    ]
    for moment, look_every in moments:
        kill_when(start(program, folder, log), moment, look_every, log)
    assert not (models / "dpo-1").exists()
    process = start(program, folder, log)
    assert process.wait(timeout=LIMIT) == 0, log.read_text(errors="replace")[-3000:]
    return folder


def artifacts_of(folder: Path) -> dict[str, list[Artifact]]:
    found: dict[str, list[Artifact]] = {}
    for kind, _, path in list_folders(folder / "artifacts"):
        found.setdefault(kind, []).append(open_artifact(path))
    return found


@pytest.mark.parametrize("by", ["url", "key"])
def test_a_teacher_is_asked_where_one_is_named(
    by: str, stub_llm: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled reasoning stands in for a teacher only where there is none."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert find_teacher(None, "actor") is None
    if by == "key":
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
        monkeypatch.setenv("OPENAI_BASE_URL", stub_llm.base_url)
    teacher = find_teacher(stub_llm.base_url if by == "url" else None, "actor")
    run = quickstart_pipeline(tmp_path, SMOKE._replace(cot_rows=8), teacher, quiet)
    artifact = run.structured_cot()
    assert set(artifact.scan().collect()["teacher"]) == {"actor"}
    assert artifact.manifest.rows == 8
    assert artifact.manifest.usage.requests == stub_llm.stats()["paths"]["/v1/chat/completions"]
    assert "sk-of-a-test" not in artifact.manifest.model_dump_json()


@pytest.mark.slow
@pytest.mark.all_cores  # not for its sake: so that the wheel is built once
def test_what_runs_is_the_wheel_with_its_extras(program: Path, tmp_path: Path) -> None:
    names = [*PACKAGES, "vllm", "trl", "uvicorn"]
    code = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name in {names}), sep='\\n')"
    shown = subprocess.run(
        [str(program.with_name("python")), "-c", code],
        cwd=tmp_path,
        env=own_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    inside = [Path(origin).is_relative_to(program.parent.parent) for origin in shown]
    assert inside == [name in PACKAGES for name in names]


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_every_artifact_is_there_once_and_valid(folder: Path) -> None:
    found = artifacts_of(folder)
    assert {kind: len(artifacts) for kind, artifacts in found.items()} == KINDS
    for artifacts in found.values():
        for artifact in artifacts:
            assert validate_artifact(artifact) == []
            assert not (artifact.folder / ".build").exists()
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_no_tree_is_lost_or_twice(folder: Path) -> None:
    (trees,) = artifacts_of(folder)["trees"]
    rows = trees.scan().collect()
    prompts, held_out = (
        open_artifact(folder / "artifacts" / "prompts" / version).scan().collect() for version in ("1.0.0", "1.1.0")
    )
    assert set(rows["prompt_id"]) <= set(prompts["prompt_id"]) - set(held_out["prompt_id"])
    assert rows["prompt_id"].n_unique() == rows["tree_id"].n_unique() == len(rows) == SMOKE.tree_prompts
    assert trees.manifest.outcomes == {"ok": len(rows)}


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_artifacts_load_without_this_package(folder: Path, tmp_path: Path) -> None:
    import datasets

    for artifacts in artifacts_of(folder).values():
        for artifact in artifacts:
            rows = datasets.load_dataset(str(artifact.folder), split="train", cache_dir=str(tmp_path))
            assert len(rows) == artifact.manifest.rows
            assert len(pl.read_parquet(f"{artifact.folder}/data/*.parquet")) == artifact.manifest.rows


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_the_summary_tells_each_stage(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    stages = {stage["stage"] for stage in summary["stages"]}
    assert {"base", "trees", "preference_pairs", "prm_pairs", "train sft", "train dpo", "train prm"} <= stages
    assert {"base", "sft", "dpo-1"} < set(summary["table"])
    for name in ("base", "sft", "dpo-1", "prm"):
        assert (folder / "models" / name / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_a_second_run_redoes_nothing_and_no_process_is_left(program: Path, folder: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in {".parquet", ".safetensors"}}
    began = time.monotonic()
    log = folder.with_suffix(".again.log")
    assert start(program, folder, log).wait(timeout=LIMIT) == 0, log.read_text(errors="replace")
    print(f"second run: {time.monotonic() - began:.1f} s")  # noqa: T201
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert processes_of(folder) == []


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_one_question_was_answered_by_the_served_search(folder: Path) -> None:
    """It is kept: the second run above has the same answer without a server."""
    asked = json.loads((folder / "summary.json").read_text())["question"]
    assert asked["answer"]
    assert asked["searched_by"]["n"] == SMOKE.candidates
    assert asked["usage"]["completion_tokens"] > 0
    logs = [folder.with_suffix(suffix).read_text(errors="replace") for suffix in (".log", ".again.log")]
    assert all(asked["question"] in log for log in logs)
