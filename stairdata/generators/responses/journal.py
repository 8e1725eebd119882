"""What the search for one answer has been sent, on disk, so that a kill costs only the requests in flight."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stairdata.llm.actor import RequestUsage
from stairdata.search.answers import AnswerResult, Ending
from stairdata.search.mcts import StepSample
from stairdata_schemas.files import Journal, read_journal


class SearchUsage(NamedTuple):
    """What the requests of a search used up."""

    actor: RequestUsage = RequestUsage()
    prm_calls: int = 0
    prm_tokens: int = 0

    def plus(self, other: SearchUsage) -> SearchUsage:
        return SearchUsage(
            self.actor.plus(other.actor), self.prm_calls + other.prm_calls, self.prm_tokens + other.prm_tokens
        )

    def outcomes(self) -> dict[str, int]:
        """Count how the requests to the actor ended."""
        return dict(Counter(self.actor.outcomes))


class SearchReply(NamedTuple):
    """A result and what it used up."""

    result: AnswerResult
    usage: SearchUsage


class Replies(Protocol):
    """Replies that are known already, and where new ones are kept."""

    def get(self, call: int) -> SearchReply | None: ...
    def keep(self, call: int, reply: SearchReply) -> None: ...


class SearchJournal:
    """The journal of one running search: its answered requests, scores included."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answered = {record["call"]: _reply(record) for record in read_journal(path)}
        self._journal = Journal(path)

    def get(self, call: int) -> SearchReply | None:
        """Return the reply to a request, if it was answered in an earlier run."""
        return self._answered.get(call)

    def keep(self, call: int, reply: SearchReply) -> None:
        """Write a reply down."""
        kind = _kind(reply.result)
        value = [list(each) for each in reply.result]
        self._journal.append({"call": call, "kind": kind, "value": value, "usage": list(reply.usage)})

    def close(self) -> None:
        self._journal.close()


def _kind(result: AnswerResult) -> str:
    first = result[0] if result else []
    return "steps" if isinstance(first, StepSample) else "endings" if isinstance(first, Ending) else "scores"


def _reply(record: dict[str, Any]) -> SearchReply:
    used, calls, tokens = record["usage"]
    usage = SearchUsage(RequestUsage.of_json(used), calls, tokens)
    value, kind = record["value"], record["kind"]
    if kind == "steps":
        return SearchReply([StepSample(*each) for each in value], usage)
    return SearchReply([Ending(*each) for each in value] if kind == "endings" else value, usage)
