"""Beam search over the steps of an answer, led by a process reward model; and its diverse form (DVTS).

As free of I/O as `mcts`; `answers` says how it is driven. Beam search: https://arxiv.org/abs/2408.03314, section 5.2;
diverse verifier tree search: https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute.

Where this differs from the code published with the latter: beams that ended keep their places and are not grown again;
nothing is padded with copies; a step cut at the token limit is dropped; a whole level is scored in one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import cast

from stairdata.search.answers import (
    Candidate,
    Ending,
    FoundAnswers,
    Request,
    Result,
    SampleEndings,
    Scoring,
    Search,
    choose,
    score,
)
from stairdata.search.mcts import SampleSteps, StepSample
from stairdata_schemas.grammar import split_steps


@dataclass(frozen=True, slots=True)
class BeamConfig:
    """The shape of a search."""

    width: int = 4
    expansions: int = 4
    max_depth: int = 7
    diverse: bool = False


@dataclass(slots=True)
class Beam(Candidate):
    """A beginning of an answer, or a whole one (`is_complete`)."""

    subtree: int = 0


def search(config: BeamConfig) -> Search:
    """Search for an answer.

    The root is asked for width times expansions first steps, which a diverse search deals to width subtrees. At each
    level every live beam is asked for its next steps in one request, and the best width go on; in a diverse search the
    best one of each subtree. An answer that ended keeps its place, and a search without a free place, or without a live
    beam, is over. What is unfinished at max_depth is written to its end.

    Where all steps are cut before any answer ended, the answers that were cut are the candidates, width at most. So
    with one beam and one expansion the search finds what a sample of the same model is, cut or not.

    Returns:
        As many candidates as the width at most, no text twice; where none is complete, the best one that was cut.
    """
    level, calls = _Level(), count()
    live, parents, finished = [Beam("", is_complete=False)], list[Beam](), list[Beam]()
    for depth in range(config.max_depth):
        asked = config.expansions if depth else config.width * config.expansions
        parents = live
        beams = yield from level.expand(parents, asked, calls)
        if depth == 0:
            beams = [replace(beam, subtree=number % config.width) for number, beam in enumerate(beams)]
        live = []
        if beams:
            yield from _score(beams, calls)
            kept = _keep_best(beams, config, config.width - len(finished))
            finished += [beam for beam in kept if beam.is_complete]
            live = [beam for beam in kept if not beam.is_complete]
        if not live:
            break
    ended = yield from _write_to_end(live, calls)
    if not finished and not ended:
        ended = level.cut or parents
    ended = level.without_twice(ended, finished)[: config.width]
    if ended:
        yield from _score(ended, calls)
    candidates: list[Candidate] = [*finished, *ended]
    return FoundAnswers(candidates, choose(candidates), level.duplicates, level.cut_steps)


class _Level:
    """Asks for next steps; knows which beginnings there were, and what was dropped."""

    def __init__(self) -> None:
        self._seen = {("", False)}
        self.duplicates = 0
        self.cut_steps = 0
        self.cut: list[Beam] = []
        """The answers that were cut at this level, in the order sampled."""

    def expand(
        self, live: Sequence[Beam], asked: int, calls: Iterator[int]
    ) -> Generator[list[Request], list[Result], list[Beam]]:
        """Ask each live beam for so many steps; return those that aren't cut and that there weren't before."""
        sampled = cast(
            "list[Sequence[StepSample]]", (yield [SampleSteps(next(calls), beam.text, asked) for beam in live])
        )
        self.cut = []
        return [
            child
            for beam, samples in zip(live, sampled, strict=True)
            for sample in samples
            if (child := self._child(beam, sample)) is not None
        ]

    def _child(self, parent: Beam, sample: StepSample) -> Beam | None:
        # An empty step that does not end the answer leaves its parent as it is, which there was before.
        child = Beam(parent.text + sample.text, sample.is_terminal, parent.step_scores, parent.subtree)
        if sample.is_cut:
            self.cut_steps += 1
            self.cut.append(replace(child, is_complete=False))
        elif (child.text, child.is_complete) in self._seen:
            self.duplicates += 1
        else:
            self._seen.add((child.text, child.is_complete))
            return child
        return None

    def without_twice(self, beams: Sequence[Beam], others: Sequence[Beam]) -> list[Beam]:
        """Drop beams whose text an earlier one or one of the others has."""
        texts, kept = {beam.text for beam in others}, []
        for beam in beams:
            if beam.text in texts:
                self.duplicates += 1
            else:
                texts.add(beam.text)
                kept.append(beam)
        return kept


def _score(beams: Sequence[Beam], calls: Iterator[int]) -> Scoring:
    """Score beams behind the steps that they have more than their parents.

    The last step is always scored: an empty one that ended the answer is read behind the end-of-turn token.
    """
    known = [min(len(beam.step_scores), max(0, len(split_steps(beam.text)) - 1)) for beam in beams]
    yield from score(beams, calls, known)


def _keep_best(beams: Sequence[Beam], config: BeamConfig, places: int) -> list[Beam]:
    """Return the beams that go on, in the order sampled; of equal scores the earlier one."""
    ranked = sorted(range(len(beams)), key=lambda index: -beams[index].step_scores[-1])
    if config.diverse:
        best: dict[int, list[int]] = defaultdict(list)
        for index in ranked:
            best[beams[index].subtree].append(index)
        ranked = [indices[0] for indices in best.values()]
    return [beams[index] for index in sorted(ranked[:places])]


def _write_to_end(live: Sequence[Beam], calls: Iterator[int]) -> Generator[list[Request], list[Result], list[Beam]]:
    if not live:
        return []
    sampled = yield [SampleEndings(next(calls), beam.text, 1) for beam in live]
    endings = cast("list[Sequence[Ending]]", sampled)
    return [
        replace(beam, text=beam.text + ending.text, is_complete=not ending.is_cut)
        for beam, (ending,) in zip(live, endings, strict=True)
    ]
