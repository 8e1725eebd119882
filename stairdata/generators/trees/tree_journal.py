"""What one running tree has been answered, on disk, so that a kill costs only the requests in flight."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.trees.judges import Score
from stairdata.llm.actor import RequestUsage
from stairdata.search.mcts import AnswerSample, RestSample, Result, StepSample
from stairdata.search.reward import Reward
from stairdata_schemas import identity
from stairdata_schemas.files import Journal, read_journal


class Reply(NamedTuple):
    """A result and what it used up."""

    result: Result
    usage: RequestUsage


class TreeJournal:
    """The journal of one running tree: answered requests, and single ratings of a judgement not yet whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answered: dict[int, Reply] = {}
        self._ratings: dict[tuple[int, str], tuple[Score, RequestUsage]] = {}
        for record in read_journal(path):
            self._remember(record)
        self._journal = Journal(path)

    def get(self, call: int) -> Reply | None:
        """Return the answer to a request, if it was answered in an earlier run."""
        return self._answered.get(call)

    def keep(self, call: int, reply: Reply) -> None:
        """Write an answer down."""
        kind, value = _to_json(reply.result)
        self._journal.append({"call": call, "kind": kind, "value": value, "usage": list(reply.usage)})

    def rating(self, call: int, aspect: str) -> tuple[Score, RequestUsage] | None:
        """Return one rating of a judgement, if it was given in an earlier run."""
        return self._ratings.get((call, aspect))

    def keep_rating(self, call: int, aspect: str, score: Score, usage: RequestUsage) -> None:
        """Write one rating down."""
        self._journal.append({"call": call, "kind": "rating", "value": [aspect, *score], "usage": list(usage)})

    def close(self) -> None:
        self._journal.close()

    def _remember(self, record: dict[str, Any]) -> None:
        usage, value = RequestUsage.of_json(record["usage"]), record["value"]
        if record["kind"] == "rating":
            self._ratings[record["call"], value[0]] = (Score(*value[1:]), usage)
        else:
            self._answered[record["call"]] = Reply(_from_json(record["kind"], value), usage)


def _to_json(result: Result) -> tuple[str, list[Any]]:
    if isinstance(result, Reward):
        return "reward", list(result)
    if isinstance(result, RestSample):
        return "rest", list(result)
    kind = "answers" if result and isinstance(result[0], AnswerSample) else "steps"
    return kind, [list(sample) for sample in result]


def _from_json(kind: str, value: list[Any]) -> Result:
    if kind == "reward":
        helpfulness, safety, reward, said = value
        return Reward(helpfulness, safety, reward, tuple((aspect, words) for aspect, words in said))
    if kind == "rest":
        return RestSample(*value)
    if kind == "answers":
        return [AnswerSample(*sample) for sample in value]
    return [StepSample(*sample) for sample in value]


class JournaledRatings:
    """What a judge needs of the tree it rates for: seeds, and the ratings it gave before a kill."""

    def __init__(self, seed: int, tree_id: str, call: int, journal: TreeJournal) -> None:
        self._seed = seed
        self._tree_id = tree_id
        self._call = call
        self._journal = journal

    def seed(self, ask: int) -> int:
        """Return the seed of the ask-th time a rating is asked for."""
        return identity.request_seed(self._seed, self._tree_id, self._call, ask)

    def known(self, aspect: str) -> tuple[Score, RequestUsage] | None:
        """Return a rating given before."""
        return self._journal.rating(self._call, aspect)

    def keep(self, aspect: str, score: Score, usage: RequestUsage) -> None:
        """Write a rating down."""
        self._journal.keep_rating(self._call, aspect, score, usage)
