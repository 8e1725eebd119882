"""What is refused before several processes begin, and what the others hear of the first one's error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stairdata_schemas.errors import TrainingError
from stairdata_training.processes import Processes


def one_of_two(monkeypatch: pytest.MonkeyPatch, rank: int, heard: list[Any]) -> Processes:
    """This process as one of two, with the other's part of each exchange given."""
    processes = Processes()
    processes.count, processes.rank = 2, rank

    def broadcast(outcome: list[Any]) -> None:
        if rank == 0:
            heard.append(list(outcome))
        else:
            outcome[:] = heard.pop(0)

    monkeypatch.setattr(processes, "_broadcast", broadcast)
    monkeypatch.setattr(processes, "_wait", lambda: None)
    monkeypatch.setattr(processes, "_gather", lambda sees: [True, sees])
    return processes


def test_several_gpus_need_a_process_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(TrainingError, match=r"4 are visible; start one process a GPU \(torchrun --nproc-per-node N"):
        Processes()


def test_the_others_hear_the_result_and_the_error_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise TrainingError("there are no rows")

    wire: list[Any] = []
    first = one_of_two(monkeypatch, 0, wire)
    assert first.first_does(lambda: 7) == 7
    with pytest.raises(TrainingError, match="there are no rows"):
        first.first_does(fails)
    second = one_of_two(monkeypatch, 1, wire)
    assert second.first_does(lambda: 8) == 7
    with pytest.raises(TrainingError, match="there are no rows"):
        second.first_does(lambda: 8)


def test_a_folder_that_another_machine_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wire: list[Any] = []
    one_of_two(monkeypatch, 0, wire).check_folder_is_shared(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing of it goes into the model folder"
    (tmp_path / "shared.txt").write_text(wire[0][0], encoding="utf-8")
    wire *= 2
    one_of_two(monkeypatch, 1, wire).check_folder_is_shared(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(TrainingError, match="not all of the 2 processes see the folder"):
        one_of_two(monkeypatch, 1, wire).check_folder_is_shared(tmp_path / "elsewhere")
