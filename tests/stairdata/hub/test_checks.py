"""A note that rows were checked spares a second look at the same bytes, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stairdata.hub import checks
from stairdata.hub.checks import check, is_noted
from stairdata_schemas import artifacts
from stairdata_schemas.artifacts import Artifact

Make = Callable[..., Artifact]
SECRET = "a-secret-of-this-environment"
OWN = {SECRET: "MY_KEY"}


@pytest.fixture(autouse=True)
def _notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAIRDATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "NOTEWORTHY_BYTES", 1)


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files whose rows are read."""
    read: list[str] = []
    plain = artifacts._validate_table

    def noted(*given: object) -> object:
        read.append(str(given[2]))
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(artifacts, "_validate_table", noted)
    return read


def note_of(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "checked").iterdir()
    return path


def test_the_second_check_of_the_same_bytes_reads_no_row(make: Make, rows_read: list[str], tmp_path: Path) -> None:
    artifact = make()
    assert check(artifact, OWN) == ([], [])
    assert len(rows_read) == 1
    assert check(artifact, OWN) == ([], [])
    assert check(artifact, {}) == ([], [])
    assert len(rows_read) == 1
    assert SECRET not in note_of(tmp_path).read_text()
    assert note_of(tmp_path).stat().st_mode & 0o777 == 0o600


def test_bytes_that_changed_are_found_although_a_note_is_there(make: Make) -> None:
    artifact = make()
    check(artifact, OWN)
    path = artifact.data_files[0]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert [problem.rule for problem in check(artifact, OWN).problems] == ["sha256"]
    (artifact.folder / "data" / "more.parquet").touch()
    assert "not_in_the_manifest" in {problem.rule for problem in check(artifact, OWN).problems}


def test_another_secret_or_another_rule_has_the_rows_read_again(
    make: Make, rows_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make("say another-secret-of-this-place")
    check(artifact, OWN)
    assert [hit.what for hit in check(artifact, {"another-secret-of-this-place": "OTHER_KEY"}).hits] == [
        "secret of this environment (OTHER_KEY)"
    ]
    assert is_noted(artifact, OWN)
    monkeypatch.setattr(checks, "_rules", lambda: "those of another release")
    assert not is_noted(artifact, OWN)


def test_a_manifest_that_says_something_else_of_the_same_bytes_has_no_note(make: Make) -> None:
    artifact = make()
    check(artifact, OWN)
    manifest = artifact.manifest.model_copy(update={"kind": "reviews"})
    assert not is_noted(Artifact(artifact.folder, manifest), OWN)
    entry = artifact.manifest.files[0].model_copy(update={"rows": 4})
    manifest = artifact.manifest.model_copy(update={"files": [entry]})
    assert not is_noted(Artifact(artifact.folder, manifest), OWN)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_note_that_somebody_else_could_have_written_does_not_count(mode: int, make: Make, tmp_path: Path) -> None:
    artifact = make()
    check(artifact, OWN)
    note_of(tmp_path).chmod(mode)
    assert not is_noted(artifact, OWN)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_note_of_another_user_does_not_count(make: Make, tmp_path: Path) -> None:
    artifact = make()
    check(artifact, OWN)
    os.chown(note_of(tmp_path), 12345, -1)
    assert not is_noted(artifact, OWN)


def test_a_broken_note_and_a_cache_that_cannot_be_written_only_cost_time(
    make: Make, rows_read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make()
    check(artifact, OWN)
    note_of(tmp_path).write_bytes(b"\xff{")
    assert not is_noted(artifact, OWN)
    (tmp_path / "file").touch()
    monkeypatch.setenv("STAIRDATA_CACHE", str(tmp_path / "file"))
    assert check(artifact, OWN) == ([], [])
    assert len(rows_read) == 2


def test_what_is_refused_leaves_no_note(make: Make, tmp_path: Path) -> None:
    check(make(f"my key is hf_{'a' * 34}"), OWN)
    assert not (tmp_path / "cache").exists()
