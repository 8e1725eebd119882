"""Option `--batch` of the kinds whose models may be asked in batches."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class BatchAction(StrEnum):
    """What `--batch` does."""

    SUBMIT = "submit"
    STATUS = "status"
    COLLECT = "collect"
    CANCEL = "cancel"


def with_batch_action(args: list[str]) -> Iterator[str]:
    """Yield the arguments with the action that `--batch` alone means."""
    for index, this in enumerate(args):
        yield this
        if this == "--batch" and args[index + 1 : index + 2] not in [[action.value] for action in BatchAction]:
            yield BatchAction.SUBMIT.value


BatchOption = Annotated[
    BatchAction | None,
    typer.Option("--batch", metavar="[ACTION]", help="Use the Batch API: submit (default), status, collect or cancel."),
]
BatchFilesOption = Annotated[
    Path | None,
    typer.Option(
        "--batch-files",
        metavar="FOLDER",
        help="Write batches as files for `vllm run-batch` into this folder, and collect their answers from it.",
        show_default=False,
    ),
]
