"""How a batch can stand and what can happen to it: the one table of transitions. No files, no network, no clock.

    prepared > validating > in_progress > finalizing > completed or expired or cancelled > closed, its answers on disk
    prepared > cancelled and closed, because it was never sent
    any of the first seven > turned_away; or failed > closed; or lost and closed

The invariant: a batch is open while its requests may still be answered, and no request is put into a second batch
meanwhile. Nothing that a server says opens a closed batch; only the loss of answers that were on disk does, because
they have to be fetched again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class BatchState(StrEnum):
    """The server's word for a batch, or one of our three. The ledgers of unfinished builds hold these words."""

    PREPARED = "prepared"
    """Ours: written down, and not confirmed by the server, which may have it all the same if its answer was lost."""
    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"
    """Refused as a whole; no request was answered."""
    TURNED_AWAY = "turned_away"
    """Ours: failed because the account's queue was full; the same requests may be submitted later."""
    LOST = "lost"
    """Ours: the server no longer knows it, or no longer has its answers."""

    @classmethod
    def _missing_(cls, value: object) -> BatchState:
        """Take a word of another vendor's server for ours; one that nobody knows is of a batch that is under way."""
        ours = _ours(str(value))
        return cls(ours) if ours in SAID else cls.IN_PROGRESS


SYNONYMS = {
    "queued": "validating", "pending": "validating", "created": "validating", "submitted": "validating",
    "running": "in_progress", "processing": "in_progress", "started": "in_progress",
    "canceling": "cancelling", "cancel_requested": "cancelling", "cancellation_requested": "cancelling",
    "succeeded": "completed", "success": "completed", "complete": "completed", "finished": "completed",
    "done": "completed", "ended": "completed",
    "canceled": "cancelled", "timeout": "expired", "timed_out": "expired", "timeout_exceeded": "expired",
    "error": "failed", "errored": "failed",
}  # fmt: skip
"""What servers that have OpenAI's dialect may say in place of its words."""
SAID = frozenset(
    {"validating", "in_progress", "finalizing", "cancelling", "completed", "expired", "cancelled", "failed"}
)


def is_known(word: object) -> bool:
    """Return whether a server's word for a state can be read."""
    return isinstance(word, str) and _ours(word) in SAID


def _ours(word: str) -> str:
    plain = word.strip().lower().replace("-", "_").replace(" ", "_")
    return SYNONYMS.get(plain, plain)


class BatchEvent(StrEnum):
    """What happens to a batch, apart from what the server says of it: that is a `BatchState`."""

    FORGOTTEN = "forgotten"
    """The server answers that there is no such batch, or no such file of answers."""
    WITHDRAWN = "withdrawn"
    """It is certain that it was never submitted, and it will not be."""
    ANSWERS_SAVED = "answers_saved"
    """All that it answered is on disk."""
    FAILURE_TOLD = "failure_told"
    """The user has been told why it failed."""
    ANSWERS_REMOVED = "answers_removed"
    """Somebody removed from disk what it had answered."""


QUEUED = frozenset(
    {
        BatchState.PREPARED,
        BatchState.VALIDATING,
        BatchState.IN_PROGRESS,
        BatchState.FINALIZING,
        BatchState.CANCELLING,
    }
)
"""Its prompt tokens take room in the account's queue, or will."""
OURS = frozenset({BatchState.PREPARED, BatchState.TURNED_AWAY, BatchState.LOST})
"""Words that no server says."""
ANSWERED = frozenset({BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED})
"""It has ended and may have answers to fetch."""
ENDED = ANSWERED | {BatchState.FAILED}
REPORTED = (QUEUED - {BatchState.PREPARED}) | ENDED | {BatchState.TURNED_AWAY}
"""What a server can say of a batch; a failure for want of room in the queue is read as turned_away."""


class BatchTransitionError(Exception):
    """An event that can't happen to a batch that stands so: an error of this program, not of the server."""


class BatchStanding(NamedTuple):
    """How a batch stands."""

    state: BatchState
    is_closed: bool = False
    """Nothing more is expected of the server: the answers are on disk, or there will be none."""

    @property
    def is_open(self) -> bool:
        """Its requests may still be answered."""
        return self in OPEN

    def after(self, event: BatchState | BatchEvent) -> BatchStanding:
        """Return how the batch stands after an event.

        Args:
            event: a `BatchState` is what the server says of the batch.

        Raises:
            BatchTransitionError: the event can't happen to it.
        """
        following = TRANSITIONS.get((self, event))
        if following is None:
            raise BatchTransitionError(f"a batch that is {self} can't be {event!r}")
        return following


OPEN = frozenset(BatchStanding(state) for state in QUEUED | ANSWERED)
TRANSITIONS: dict[tuple[BatchStanding, BatchState | BatchEvent], BatchStanding] = {
    # The server's word counts whatever it was before, even a step back: only the server knows.
    **{(before, word): BatchStanding(word) for before in OPEN for word in REPORTED},
    # What was never confirmed can't be forgotten: not finding it means that it has to be submitted.
    **{
        (BatchStanding(state), BatchEvent.FORGOTTEN): BatchStanding(BatchState.LOST, is_closed=True)
        for state in (QUEUED | ANSWERED) - {BatchState.PREPARED}
    },
    (BatchStanding(BatchState.PREPARED), BatchEvent.WITHDRAWN): BatchStanding(BatchState.CANCELLED, is_closed=True),
    **{(BatchStanding(state), BatchEvent.ANSWERS_SAVED): BatchStanding(state, is_closed=True) for state in ANSWERED},
    (BatchStanding(BatchState.FAILED), BatchEvent.FAILURE_TOLD): BatchStanding(BatchState.FAILED, is_closed=True),
    **{(BatchStanding(state, is_closed=True), BatchEvent.ANSWERS_REMOVED): BatchStanding(state) for state in ANSWERED},
}
"""How a batch stands and what happens, to how it stands then. What is not here can't happen."""
