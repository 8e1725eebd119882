"""What models have said in a build of evaluations, on disk before it is used, so that nothing is asked twice.

Answers, attacks' requests and judgements are replies by a key each. Several rows may wait for the same reply: it is
asked for once. A reply that had not arrived when the process was killed is paid for, and asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from stairdata.llm.actor import RequestUsage
from stairdata_schemas.building import Build
from stairdata_schemas.files import Journal, read_journal

JOURNAL = "replies.jsonl"


class ModelReply(NamedTuple):
    """What was said, as a JSON value, and what it took."""

    value: Any
    usage: RequestUsage


class ReplyJournal:
    """Replies by key.

    Args:
        build: in whose folder they are kept; None keeps them in this process alone.
    """

    def __init__(self, build: Build | None) -> None:
        self._known: dict[str, ModelReply] = {}
        self._asked: dict[str, asyncio.Future[ModelReply]] = {}
        self._journal: Journal | None = None
        if build is None:
            return
        for record in read_journal(build.work / JOURNAL):
            if record["usage"] is None:
                self._known.pop(record["key"], None)
            else:
                usage = RequestUsage.of_json(record["usage"])
                self._known[record["key"]] = ModelReply(record["value"], usage)
        self._journal = build.journal(JOURNAL)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    async def once(self, key: str, ask: Callable[[], Awaitable[ModelReply]]) -> ModelReply:
        """Return the reply that is known, or is asked for already; else ask and keep it.

        Raises:
            Exception: whatever asking raises, for all who wait for it.
        """
        known = self._known.get(key)
        if known is not None:
            return known
        if key not in self._asked:
            asked = asyncio.ensure_future(self._ask(key, ask))
            asked.add_done_callback(_retrieve_exception)  # nobody waits for it once the run is stopped
            self._asked[key] = asked
        return await asyncio.shield(self._asked[key])

    def drop(self, key: str) -> None:
        """Let go of a reply that is of no use, so that the next run asks anew."""
        self._asked.pop(key, None)
        if self._known.pop(key, None) is not None and self._journal is not None:
            self._journal.append({"key": key, "value": None, "usage": None})

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    async def _ask(self, key: str, ask: Callable[[], Awaitable[ModelReply]]) -> ModelReply:
        reply = await ask()
        # no fsync: a kill of this process loses none, and a power cut only those of rows that are not made yet
        if self._journal is not None:
            self._journal.append({"key": key, "value": reply.value, "usage": list(reply.usage)})
        self._known[key] = reply
        self._asked.pop(key, None)
        return reply


def _retrieve_exception(future: asyncio.Future[ModelReply]) -> None:
    """Retrieve an error, so that asyncio does not print it."""
    if not future.cancelled():
        future.exception()
