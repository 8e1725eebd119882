"""Several processes of one training, such as torchrun starts: the first decides and writes, the others follow."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from stairdata_schemas.errors import StairDataError, TrainingError
from stairdata_schemas.files import write_atomic
from stairdata_training.plan import processes_here
from stairdata_training.sharding import check_sharding, sharding_here

T = TypeVar("T")
_LONGEST_WAIT = timedelta(hours=12)  # while the first tokenises, saves or measures; the libraries' own is 30 minutes


class Processes:
    """This process among those of its training. With one process nothing of torch's is started.

    Raises:
        TrainingError: several GPUs are visible to a single process, or weights can't be sharded in the way asked for.
    """

    def __init__(self) -> None:
        import torch

        self.count, self.sharding = processes_here(), sharding_here()
        check_sharding(self.count)
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # of a launcher's configuration; `precision` decides
        if self.count > 1:
            from accelerate import PartialState

            state = PartialState(cpu=not torch.cuda.is_available(), timeout=_LONGEST_WAIT)
            self.rank = int(state.process_index)
        else:
            self.rank = 0
            if torch.cuda.device_count() > 1:
                raise TrainingError(
                    f"one process trains on one GPU and {torch.cuda.device_count()} are visible; start one process a "
                    "GPU (torchrun --nproc-per-node N -m stairdata train ...), or set CUDA_VISIBLE_DEVICES=0"
                )

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    def first_does(self, work: Callable[[], T]) -> T:
        """Let the first process do something while the others wait; all get its result.

        Raises:
            StairDataError: what the work raises, in the first process.
            TrainingError: the same message, in the others.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except StairDataError as error:
                self._broadcast([None, str(error)])
                raise
        self._broadcast(outcome)
        if outcome[1] is not None:
            raise TrainingError(outcome[1])
        done: T = outcome[0]
        return done

    def check_folder_is_shared(self, folder: Path) -> None:
        """Check that all processes see the folder that the first writes to.

        Raises:
            TrainingError: one does not.
        """
        if self.count == 1:
            return
        token = self.first_does(lambda: secrets.token_hex(8))
        mark = folder / "shared.txt"
        if self.is_first:
            write_atomic(mark, token)
        self._wait()
        sees = mark.is_file() and mark.read_text(encoding="utf-8") == token
        seen = self._gather(sees)
        if self.is_first:
            mark.unlink()
        if not all(seen):
            raise TrainingError(
                f"not all of the {self.count} processes see the folder {folder} of the first one; name an output "
                "folder on a disk that all machines share"
            )

    def _broadcast(self, outcome: list[Any]) -> None:
        import torch

        torch.distributed.broadcast_object_list(outcome, src=0)

    def _wait(self) -> None:
        import torch

        torch.distributed.barrier()

    def _gather(self, value: bool) -> list[bool]:
        import torch

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values
