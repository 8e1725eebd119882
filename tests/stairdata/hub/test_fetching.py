"""Files of a release are checked while others are on their way: with the result of one check after the other."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stairdata.hub import pull as module
from stairdata.hub.addresses import ConfigPath
from stairdata.hub.pull import RemoteRelease, _fetch_files
from stairdata.hub.transfers import TransferError, _AnswerClock, _Stream, stopped_by
from stairdata_schemas import writing
from stairdata_schemas.artifacts import Artifact, Problem, validate_file
from stairdata_schemas.errors import ArtifactError
from stairdata_schemas.manifest import FileEntry, sha256_of_file
from tests.stairdata.hub.conftest import make_shards, pair_rows

RELEASE = RemoteRelease("org/data", "c" * 40, ConfigPath(), None, {})
SHARDS = 5
DAMAGES = {
    "none": "",
    "a rule": "depth|min",
    "rows": "rows",
    "columns": "columns",
    "no parquet": "parquet",
    "too large": "too_large",
    "other bytes": "sha256",
}
"""What is wrong with a file, and the rule that it breaks."""


class Shards(NamedTuple):
    """A release of several files, and what stands in for its Hub."""

    artifact: Artifact
    hub: Path

    def damaged(self, damages: dict[int, str]) -> Artifact:
        """Return what a manifest says of the files once some are damaged."""
        entries = list(self.artifact.manifest.files)
        for index, damage in damages.items():
            entries[index] = _damage(self.artifact, entries[index], self.hub, damage)
        manifest = self.artifact.manifest.model_copy(update={"files": entries})
        return Artifact(self.artifact.folder, manifest)


def _damage(artifact: Artifact, entry: FileEntry, hub: Path, damage: str) -> FileEntry:
    source, path = artifact.folder / entry.path, hub / entry.path
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.read_parquet(source)
    if damage == "a rule":
        frame.with_columns(depth=pl.lit(-1, frame.schema["depth"])).write_parquet(path)
    elif damage == "columns":
        frame.drop("chosen").write_parquet(path)
    elif damage == "no parquet":
        path.write_bytes(b"PAR1 and nothing else")
    elif damage == "too large":
        frame.with_columns(chosen=pl.lit("x" * (17 * 1024**2))).write_parquet(path)
    else:
        shutil.copy(source, path)
    if damage == "other bytes":
        return entry.model_copy(update={"sha256": "0" * 64})
    rows = entry.rows + (damage == "rows")
    return entry.model_copy(update={"sha256": sha256_of_file(path), "bytes": path.stat().st_size, "rows": rows})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "SHARD_BYTES", 1)
        return Shards(make_shards(folder, pair_rows(3 * SHARDS), SHARDS), folder / "hub")


@pytest.fixture
def fetch(shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Problem]]:
    """Fetch a release from a folder."""

    def fetched(artifact: Artifact, begun: Callable[[Path, threading.Event], None] = lambda *_: None) -> list[Problem]:
        def download(_: RemoteRelease, path: str, staging: Path, stop: threading.Event) -> Path:
            begun(Path(path), stop)
            damaged = shards.hub / path
            staging.mkdir(exist_ok=True)
            source = damaged if damaged.is_file() else shards.artifact.folder / path
            return Path(shutil.copy(source, staging / Path(path).name))

        monkeypatch.setattr(module, "_download_file", download)
        (tmp_path / "data").mkdir(exist_ok=True)
        return _fetch_files(RELEASE, Artifact(tmp_path, artifact.manifest))

    return fetched


@pytest.mark.parametrize(("damage", "rule"), DAMAGES.items())
def test_a_damaged_file_in_the_middle_is_found(
    damage: str, rule: str, shards: Shards, fetch: Any, tmp_path: Path
) -> None:
    expected = assert_as_in_sequence(shards, {2: damage}, fetch, tmp_path)
    assert [problem.rule for problem in expected] == ([rule] if rule else [])


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(damages=st.dictionaries(st.integers(0, SHARDS - 1), st.sampled_from(list(DAMAGES)), max_size=SHARDS))
def test_the_result_is_that_of_one_check_after_the_other(
    damages: dict[int, str], shards: Shards, fetch: Any, tmp_path: Path
) -> None:
    assert_as_in_sequence(shards, damages, fetch, tmp_path)


def assert_as_in_sequence(shards: Shards, damages: dict[int, str], fetch: Any, tmp_path: Path) -> list[Problem]:
    folder = tmp_path / "whole"
    for left in (shards.hub, folder, tmp_path / "data"):
        shutil.rmtree(left, ignore_errors=True)
    artifact = shards.damaged(damages)
    shutil.copytree(shards.artifact.folder, folder)
    if shards.hub.is_dir():
        shutil.copytree(shards.hub, folder, dirs_exist_ok=True)
    checks = (validate_file(Artifact(folder, artifact.manifest), entry) for entry in artifact.manifest.files)
    expected = next(filter(None, checks), [])
    if expected and expected[0].rule == "sha256":
        with pytest.raises(ArtifactError, match=f"{Path(expected[0].where).name} of .* was damaged on the way"):
            fetch(artifact)
    else:
        assert fetch(artifact) == expected
    return expected


def test_ctrl_c_ends_what_is_under_way_and_the_next_pull_goes_on(
    shards: Shards, fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(shards.hub, ignore_errors=True)
    first, second, *_ = (Path(entry.path) for entry in shards.artifact.manifest.files)
    is_checked = threading.Event()

    def checked(artifact: Artifact, entry: FileEntry, visit: Any) -> list[Problem]:
        found = validate_file(artifact, entry, visit)
        is_checked.set()
        return found

    def interrupted(path: Path, stop: threading.Event) -> None:
        if path != first:
            assert is_checked.wait(60)
            if path == second:
                os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(60)
            raise CancelledError

    monkeypatch.setattr(module, "validate_file", checked)
    with pytest.raises(KeyboardInterrupt):
        fetch(shards.artifact, interrupted)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [first.name]
    asked: list[Path] = []
    assert fetch(shards.artifact, lambda path, _: asked.append(path)) == []
    assert sorted(asked) == [Path(entry.path) for entry in shards.artifact.manifest.files[1:]]


def test_large_files_are_downloaded_one_after_the_other_unless_the_link_is_slow(
    shards: Shards, fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(shards.hub, ignore_errors=True)
    monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    last = Path(shards.artifact.manifest.files[-1].path).name
    under_way: list[str] = []
    beside = threading.Event()

    def alone(path: Path, _: threading.Event) -> None:
        under_way.append(path.name)
        if len(under_way) > 1:
            beside.set()
        beside.wait(0.05)  # for another one, which must not come
        under_way.remove(path.name)

    assert fetch(shards.artifact, alone) == []
    assert not beside.is_set()
    shutil.rmtree(tmp_path / "data")
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    all_begun = threading.Barrier(module.WORKERS)

    def together(path: Path, _: threading.Event) -> None:
        if path.name != last:
            all_begun.wait(60)

    assert fetch(shards.artifact, together) == []


def test_an_answer_ends_once_it_is_told_to() -> None:
    event = threading.Event()
    with stopped_by(event):
        pieces = iter(_Stream(iter([b"one", b"two"]), None, _AnswerClock()))
    assert next(pieces) == b"one"
    event.set()
    with pytest.raises(TransferError, match="was ended"):
        next(pieces)
