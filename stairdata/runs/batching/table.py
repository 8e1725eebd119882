"""What the user is told of a build's batches."""

from __future__ import annotations

from collections.abc import Iterator

from stairdata.llm.batches.queue import BatchQueue
from stairdata.llm.batches.states import ENDED, BatchState
from stairdata_schemas.errors import quote

REMARKED = {BatchState.IN_PROGRESS, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED}
"""States in which what a server says beside them is no reason of a failure."""


def batch_table(queue: BatchQueue, counts: str, *, missing: bool, is_waiting: bool) -> str:
    """Return the batches of a build and what is left, as lines.

    Args:
        queue: the build's.
        counts: what is made, in progress and missing, in words.
        missing: something is to be submitted.
        is_waiting: what is missing finds no room in the account's queue.
    """
    lines = [
        f"  {'batch':<40}  {'status':<12}  {'answered':>9}  {'failed':>7}  {'of':>7}",
        *_rows(queue),
        f"  {counts}",
    ]
    lines += [f"  {job.batch_id}: {quote(job.error)}" for job in queue.jobs if job.error and job.state in REMARKED]
    failures = queue.results.failures
    if failures:
        last = next(reversed(failures.values()))
        lines.append(
            f"  {len(failures):,} requests failed in batches, the last one by {last.outcomes[-1]}: {quote(last.detail)}"
        )
    if is_waiting:
        lines.append("  the rest waits for room in the queue (max_enqueued_tokens): run `--batch` again later")
    elif missing:
        lines.append("  `--batch` submits the missing ones")
    if any(not job.is_closed and job.state in ENDED for job in queue.jobs):
        lines.append("  `--batch collect` makes rows from the batches that have ended")
    if commands := queue.commands():
        lines += ["  run these where vLLM and the model are, then the same command again:", *commands]
    return "\n".join(["batches:", *lines])


def _rows(queue: BatchQueue) -> Iterator[str]:
    for job in queue.jobs:
        is_collected = job.is_closed and job.state in {BatchState.COMPLETED, BatchState.EXPIRED}
        status = "collected" if is_collected else job.state
        name = job.batch_id or f"(no id yet) {job.key}"
        yield f"  {name:<40}  {status:<12}  {job.completed:>9,}  {job.failed:>7,}  {job.requests:>7,}"
