"""Beam search and plain samples, driven by toy policies and scorers, which are functions of what they are asked."""

# ruff: noqa: S311 - dice, not secrets

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.search.answers import (
    AnswerRequest,
    AnswerResult,
    AnswerSearch,
    Ending,
    FoundAnswers,
    SampleEndings,
    ScoreTexts,
    sample,
)
from stairdata.search.beam import BeamConfig, search
from stairdata.search.mcts import SampleSteps, StepSample
from stairdata_schemas.grammar import OUTPUT_CLOSE, STEP_CLOSE, split_steps

LENGTH = 3
"""Steps of a toy's answer."""


def step(name: str) -> StepSample:
    """A step that goes on, an end (`.`), one that is cut (`~`), or an empty one that ends the turn (nothing)."""
    if name.endswith("~"):
        return StepSample(name, None, is_terminal=False, is_cut=True)
    if not name:
        return StepSample("", None, is_terminal=True, is_cut=False)
    is_end = name.endswith(".")
    return StepSample(name + (OUTPUT_CLOSE if is_end else STEP_CLOSE), None, is_terminal=is_end, is_cut=False)


def names(text: str) -> str:
    return text.replace(OUTPUT_CLOSE, "").replace(STEP_CLOSE, "")


@dataclass
class Toy:
    """Answers a search, and remembers what it was asked."""

    steps: Callable[[str, int, int], Sequence[str]]
    """From prefix, call and n to names of steps."""
    worth: Callable[[str], float]
    """From the names of the steps of a text to its score."""
    ending: Callable[[str], str] = lambda _: "end."
    asked: list[list[AnswerRequest]] = field(default_factory=list)

    def run(self, searching: AnswerSearch) -> FoundAnswers:
        batch = next(searching)
        while True:
            self.asked.append(batch)
            try:
                batch = searching.send([self.answer(request) for request in batch])
            except StopIteration as stop:
                found: FoundAnswers = stop.value
                return found

    def answer(self, request: AnswerRequest) -> AnswerResult:
        if isinstance(request, SampleSteps):
            return [step(name) for name in self.steps(names(request.prefix), request.call, request.n)]
        if isinstance(request, SampleEndings):
            ends = [step(self.ending(names(request.prefix))) for _ in range(request.n)]
            return [Ending(each.text, each.is_cut) for each in ends]
        return [self.scores(text.text, text.known) for text in request.texts]

    def scores(self, text: str, known: int) -> list[float]:
        pieces = split_steps(text) or [""]
        assert known < len(pieces)
        return [self.worth(names("".join(pieces[: end + 1]))) for end in range(known, len(pieces))]

    def requests(self, kind: type) -> list[AnswerRequest]:
        return [request for batch in self.asked for request in batch if isinstance(request, kind)]


def of(tree: Mapping[str, Sequence[str]]) -> Callable[[str, int, int], Sequence[str]]:
    return lambda prefix, _, n: list(tree[prefix])[:n]


def texts(found: FoundAnswers) -> list[str]:
    return [names(each.text) for each in found.candidates]


def dice(prefix: str, call: int, n: int) -> list[str]:
    """Draw steps a to f; an answer ends with its third."""
    rng = random.Random(f"{prefix}/{call}")
    end = "." if len(prefix) == LENGTH - 1 else ""
    return [rng.choice("abcdef") + end for _ in range(n)]


def distance(text: str) -> float:
    """Score by how much of the best path there is: `cab.`."""
    return float(sum(one == other for one, other in zip(text, "cab.", strict=False)))


def test_both_methods_find_the_known_best_path() -> None:
    beam = Toy(dice, distance).run(search(BeamConfig(width=4, expansions=24)))
    assert names(beam.candidates[beam.chosen].text) == "cab."
    assert beam.candidates[beam.chosen].step_scores == [1.0, 2.0, 4.0]
    whole = Toy(lambda *_: [], distance)
    drawn = iter(range(400))

    def draw(_: str) -> str:
        rng = random.Random(next(drawn))
        return "".join(rng.choice("abc") for _ in range(LENGTH)) + "."

    whole.ending = draw
    found = whole.run(sample(200, is_scored=True, keeps_best=True))
    assert names(found.candidates[found.chosen].text) == "cab."
    assert len(found.candidates) == 200, "samples are kept as they are drawn"
    (scored,) = whole.requests(ScoreTexts)
    assert isinstance(scored, ScoreTexts)
    assert len(scored.texts) == len({each.text for each in found.candidates}) < 200, "equal texts are scored once"


@given(
    st.lists(st.sampled_from("abc"), min_size=0, max_size=9),
    st.sampled_from([".", "~", ""]),
    st.integers(1, 8),
    st.booleans(),
)
def test_width_one_with_one_expansion_is_a_sample(path: list[str], end: str, depth: int, diverse: bool) -> None:
    """Of a policy that writes one answer, which ends, is cut, or ends with an empty step."""
    last = f"z{end}" if end else ""
    whole = "".join(step(name).text for name in [*path, last])

    def rest(prefix: str) -> str:
        return [*path, last][len(prefix)]

    toy = Toy(lambda prefix, *_: [rest(prefix)], lambda text: float(len(text)))

    def answer(request: AnswerRequest) -> AnswerResult:
        if isinstance(request, SampleEndings):
            return [Ending(whole[len(request.prefix) :], end == "~")] * request.n
        return Toy.answer(toy, request)

    toy.answer = answer  # type: ignore[method-assign]
    (one,) = toy.run(sample(1, is_scored=True, keeps_best=False)).candidates
    (same,) = toy.run(search(BeamConfig(1, 1, depth, diverse))).candidates
    assert (same.text, same.is_complete, same.step_scores) == (one.text, one.is_complete, one.step_scores)


def test_a_finished_answer_keeps_its_place_and_the_width_shrinks() -> None:
    tree = {"": ["a", "b.", "c", "d"], "a": ["a", "b"], "c": ["a.", "b"], "aa": ["a."], "ab": ["a."]}
    worth = {"a": 4, "b.": 9, "c": 3, "d": 1, "aa": 5, "ab": 6, "ca.": 1, "cb": 2, "aba.": 2}
    toy = Toy(of(tree), lambda text: float(worth[text]))
    found = toy.run(search(BeamConfig(width=2, expansions=2)))
    assert texts(found) == ["b.", "aba."], "in the order sampled"
    assert (found.chosen, found.candidates[0].step_scores, found.candidates[1].step_scores) == (0, [9.0], [4, 6, 2])
    sampled = [(names(each.prefix), each.n) for each in toy.requests(SampleSteps) if isinstance(each, SampleSteps)]
    assert sampled == [("", 4), ("a", 2), ("ab", 2)]
    known = [[text.known for text in each.texts] for each in toy.requests(ScoreTexts) if isinstance(each, ScoreTexts)]
    assert known == [[0, 0, 0, 0], [1, 1], [2]], "a beginning is scored once"


def test_no_free_place_ends_the_search() -> None:
    toy = Toy(of({"": ["a.", "b.", "c", "d"]}), lambda text: {"a.": 3.0, "b.": 2.0, "c": 1.0, "d": 0.0}[text])
    assert texts(toy.run(search(BeamConfig(width=2, expansions=2)))) == ["a.", "b."]
    assert len(toy.requests(SampleSteps)) == 1


def test_of_equal_scores_the_earlier_goes_on_and_is_chosen() -> None:
    toy = Toy(of({"": ["a", "b", "c", "d"], "a": ["x.", "y."], "b": ["x.", "y."]}), lambda _: 1.0)
    found = toy.run(search(BeamConfig(width=2, expansions=2)))
    assert (texts(found), found.chosen) == (["ax.", "ay."], 0)


def test_duplicates_and_cut_steps_are_dropped_and_counted() -> None:
    toy = Toy(of({"": ["a", "a", "b~", "c", "c", "c"], "a": ["z."] * 2, "c": ["z.", "y~"]}), lambda _: 1.0)
    found = toy.run(search(BeamConfig(width=3, expansions=2)))
    assert (texts(found), found.duplicates, found.cut_steps) == (["az.", "cz."], 4, 2)


def test_where_all_is_cut_the_best_cut_answer_is_chosen() -> None:
    toy = Toy(of({"": ["a", "b", "c~", "d~"], "a": ["x~", "x~"], "b": ["y~", "z~"]}), lambda text: float("z" in text))
    found = toy.run(search(BeamConfig(width=2, expansions=2)))
    assert (texts(found), found.chosen, found.cut_steps) == (["ax~", "by~"], 0, 6)
    assert not any(each.is_complete for each in found.candidates)
    nothing = Toy(of({"": ["a~", "b~"]}), lambda text: float("b" in text)).run(search(BeamConfig(2, 1)))
    assert (texts(nothing), nothing.chosen) == (["a~", "b~"], 1)


def test_what_is_unfinished_at_max_depth_is_written_to_its_end() -> None:
    toy = Toy(
        of({"": ["a", "b", "c.", "d"]}), lambda text: float(len(text)), lambda prefix: "~" if prefix == "a" else "z."
    )
    found = toy.run(search(BeamConfig(width=4, expansions=1, max_depth=1)))
    assert texts(found) == ["c.", "a~", "bz.", "dz."]
    assert [each.is_complete for each in found.candidates] == [True, False, True, True]
    assert found.chosen == 2, "the best complete one; the cut one is no better than any of these"


def test_a_cut_answer_is_chosen_only_where_none_is_complete() -> None:
    ends = {"a": "zzzzz~", "b": "z."}
    toy = Toy(of({"": ["a", "b"]}), lambda text: float(len(text)), lambda prefix: ends[prefix])
    found = toy.run(search(BeamConfig(2, 1, max_depth=1)))
    assert found.candidates[0].score is not None
    assert found.candidates[1].score is not None
    assert found.candidates[0].score > found.candidates[1].score
    assert found.chosen == 1


def test_an_empty_step_ends_the_answer_and_is_scored_behind_it() -> None:
    toy = Toy(of({"": ["a"], "a": [""]}), lambda text: float(len(text)))
    found = toy.run(search(BeamConfig(1, 1)))
    assert (texts(found), found.candidates[0].is_complete, found.candidates[0].step_scores) == (["a"], True, [1.0])
    last = toy.requests(ScoreTexts)[-1]
    assert isinstance(last, ScoreTexts)
    assert [(names(text), complete, known) for text, complete, known in last.texts] == [("a", True, 0)]


def test_diverse_search_goes_on_in_each_subtree() -> None:
    tree = {"": ["a", "b", "a", "c", "d"], "a": ["x.", "y."], "c": ["x.", "y."], "b": ["x."], "d": ["x.", "y."]}
    worth = {"a": 1, "b": 2, "c": 9, "d": 8, "cx.": 1, "cy.": 2, "dx.": 5, "dy.": 5}
    toy = Toy(of(tree), lambda text: float(worth[text]))
    found = toy.run(search(BeamConfig(width=2, expansions=3, diverse=True)))
    assert texts(found) == ["cy.", "dx."], "a and c are dealt to the one subtree, b and d to the other"
    assert found.chosen == 1


@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.booleans(),
)
def test_width_and_no_answer_twice(seed: int, width: int, expansions: int, depth: int, diverse: bool) -> None:
    def roll(prefix: str, call: int, n: int) -> list[str]:
        rng = random.Random(f"{seed}/{prefix}/{call}")
        return [rng.choice(["a", "b", "c", "a.", "b.", "a~", "b~", ""]) for _ in range(n)]

    def worth(text: str) -> float:
        return random.Random(f"{seed}/{text}").choice([0.0, 0.5, 1.0])

    def end(prefix: str) -> str:
        return random.Random(f"{seed}/{prefix}").choice(["x.", "y~", ""])

    toy = Toy(roll, worth, end)
    config = BeamConfig(width, expansions, depth, diverse)
    found = toy.run(search(config))
    assert 1 <= len(found.candidates) <= width
    assert len({each.text for each in found.candidates}) == len(found.candidates)
    for batch in toy.asked:
        assert len(batch) <= width
        prefixes = [each.prefix for each in batch if not isinstance(each, ScoreTexts)]
        assert len(set(prefixes)) == len(prefixes)
        for each in batch:
            if isinstance(each, ScoreTexts):
                assert 0 < len(set(each.texts)) == len(each.texts) <= width * expansions
    calls = [request.call for batch in toy.asked for request in batch]
    assert calls == list(range(len(calls)))
    is_any_complete = any(each.is_complete for each in found.candidates)
    chosen = found.candidates[found.chosen]
    assert chosen.is_complete is is_any_complete
    rivals = [each.step_scores[-1] for each in found.candidates if each.is_complete is is_any_complete]
    assert chosen.step_scores[-1] == max(rivals)
    assert [each.step_scores for each in found.candidates] == [toy.scores(each.text, 0) for each in found.candidates]
    again = Toy(roll, worth, end)
    assert again.run(search(config)) == found
    assert again.asked == toy.asked


@pytest.mark.parametrize("keeps_best", [True, False])
def test_samples_that_nobody_scores(*, keeps_best: bool) -> None:
    toy = Toy(lambda *_: [], lambda _: 0.0, lambda _: "z.")
    found = toy.run(sample(3, is_scored=keeps_best, keeps_best=keeps_best))
    assert (texts(found), found.chosen) == (["z."] * 3, 0)
    assert [each.score for each in found.candidates] == ([0.0] * 3 if keeps_best else [None] * 3)
