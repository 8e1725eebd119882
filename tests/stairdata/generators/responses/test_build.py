"""Answers of the actor: samples, the best of n, and beam search, against the stub server and scorers of our own."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata.generators.forecast import forecast_responses
from stairdata.generators.responses.build import build_responses
from stairdata.generators.responses.workload import OpenScorer
from stairdata.llm.budget import BudgetLimits
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata.search.choice import best_of
from stairdata.search.scoring import ScoreItem, Scorer, StepScores
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BudgetError, QuarantineError, RecipeError, ServerError
from stairdata_schemas.grammar import split_steps
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.rendering import load_tokenizer

if TYPE_CHECKING:
    from tests.conftest import StubServer

PRM = ModelIdentity(role="prm", name="prm", revision="abc")
BEAM = {"method": "beam", "prm": "folder/prm", "width": 2, "expansions": 3, "max_depth": 4}
Score = Callable[[str], float]
"""From the text up to a step to its score."""


class Recorder:
    """A scorer that remembers what it was asked."""

    def __init__(self, score: Score) -> None:
        self.score_text = score
        self.items: list[ScoreItem] = []
        self.opened = 0
        self.fail: Callable[[ScoreItem], None] = lambda _: None

    async def score(self, items: Sequence[ScoreItem]) -> StepScores:
        for item in items:
            self.fail(item)
        self.items += items
        return StepScores([self._values(item) for item in items], len(items), sum(len(item.text) for item in items))

    def _values(self, item: ScoreItem) -> list[float]:
        steps = split_steps(item.text) or [""]
        assert item.known < len(steps)
        return [self.score_text("".join(steps[: end + 1])) for end in range(item.known, len(steps))]

    @asynccontextmanager
    async def open(self, _folder: Path, _budget: object, _waiting: object) -> AsyncIterator[Scorer]:
        self.opened += 1
        yield self


@pytest.fixture
def build(
    actor_section: dict[str, Any],
    stub_llm: StubServer,
    waits: list[float],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> Callable[..., Artifact]:
    def answer(
        count: int,
        scorer: Recorder | None = None,
        *,
        root: str = "answers",
        limits: BudgetLimits | None = None,
        actor: dict[str, Any] | None = None,
        scored_by: ModelIdentity = PRM,
        max_quarantine: float = 0.05,
        **section: Any,
    ) -> Artifact:
        prompts = make_prompts(count)
        recipe = Recipe.model_validate(
            {"actor": {"retries": 2, **actor_section, **(actor or {})}, "responses": section}
        )
        options = BuildOptions(
            root=tmp_path / root,
            inputs=(str(prompts.folder),),
            limits=limits or BudgetLimits(),
            max_quarantine=max_quarantine,
        )
        opening: OpenScorer | None = scorer.open if scorer else None
        return build_responses(recipe, options, scored_by if scorer else None, opening)

    return answer


def rows_of(artifact: Artifact) -> pl.DataFrame:
    assert validate_artifact(artifact) == []
    return artifact.scan().collect().drop("seconds")


def length(text: str) -> float:
    return float(len(text))


def test_one_answer_a_prompt(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    artifact = build(5)
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect().to_dicts()
    assert [row["prompt"].split()[1] for row in rows] == [f"{number}:" for number in range(5)]
    for row in rows:
        assert (row["method"], row["model"], row["prm"], row["n"], row["score"]) == ("sample", "actor", None, 1, None)
        assert row["response_id"] != identity.response_id(row["prompt_id"], {}, 42)
        assert (row["step_scores"], row["prm_calls"], row["prm_tokens"]) == (None, None, None)
        assert (row["requests"], row["prompt_tokens"] > 10, row["seconds"] > 0) == (1, True, True)
        assert row["text"] == row["candidates"][0]["text"]
        assert "<|im_end|>" not in row["text"]
        assert row["candidates"][0]["is_complete"]
    body = stub_llm.last()["body"]
    assert body["stop"] == ["<|/Output|>", "<|im_end|>"]
    assert artifact.manifest.usage.requests == stub_llm.stats()["requests"] == 5
    assert artifact.manifest.usage.completion_tokens == sum(row["completion_tokens"] for row in rows) > 0


def test_usage_is_what_the_server_says(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    usage, said = build(5, n=3).manifest.usage, stub_llm.stats()
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (5, *said["usage"])
    assert min(said["usage"]) > 5


def test_usage_of_a_resumed_build_is_that_of_all_its_runs(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    with pytest.raises(BudgetError):
        build(6, concurrency=1, max_tokens=64, limits=BudgetLimits(total_tokens=400))
    first = stub_llm.stats()
    assert 0 < first["requests"] < 6
    usage, said = build(6, concurrency=1, max_tokens=64).manifest.usage, stub_llm.stats()
    assert usage.requests == said["requests"] == 6
    assert (usage.prompt_tokens, usage.completion_tokens) == tuple(said["usage"])
    assert all(0 < before < after for before, after in zip(first["usage"], said["usage"], strict=True))


def test_the_best_of_n_has_the_highest_score(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    scorer = Recorder(length)
    artifact = build(6, scorer, method="best_of_n", n=5, prm="folder/prm")
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect().to_dicts()
    assert stub_llm.stats()["requests"] == 6, "n samples are one request"
    for row in rows:
        lengths = [len(candidate["text"]) for candidate in row["candidates"]]
        assert [candidate["score"] for candidate in row["candidates"]] == lengths
        assert row["chosen_index"] == lengths.index(max(lengths))
        assert (row["score"], len(row["text"])) == (max(lengths), max(lengths))
        assert row["text"] == row["candidates"][row["chosen_index"]]["text"]
        assert (row["prm"], row["n"]) == ("prm", 5)
        for candidate, scores in zip(row["candidates"], row["step_scores"], strict=True):
            steps = split_steps(candidate["text"])
            assert scores == [len("".join(steps[: end + 1])) for end in range(len(steps))]
        distinct = {candidate["text"] for candidate in row["candidates"]}
        assert (row["prm_calls"], row["prm_tokens"]) == (len(distinct), sum(map(len, distinct)))
    assert len({row["chosen_index"] for row in rows}) > 1
    assert [model.role for model in artifact.manifest.models] == ["actor", "prm"]
    assert len(scorer.items) == len({(item.prompt, item.text) for item in scorer.items}), "equal texts are scored once"


def test_the_first_k_are_the_best_of_k(build: Callable[..., Artifact]) -> None:
    many = build(3, Recorder(length), root="many", method="best_of_n", n=4, prm="prm").scan().collect().to_dicts()
    for k in (1, 2, 4):
        fewer = build(3, Recorder(length), root=f"{k}", method="best_of_n", n=k, prm="prm").scan().collect().to_dicts()
        for row, other in zip(many, fewer, strict=True):
            left_open = dict.fromkeys(
                ["response_id", "requests", "prompt_tokens", "completion_tokens", "prm_calls", "prm_tokens", "seconds"]
            )
            assert best_of(row, k) | left_open == other | left_open


def test_of_equal_scores_the_first_is_kept(build: Callable[..., Artifact]) -> None:
    artifact = build(2, Recorder(lambda _: 1.0), method="best_of_n", n=3, prm="prm")
    assert artifact.scan().collect()["chosen_index"].to_list() == [0, 0]


def test_a_cut_answer_is_chosen_only_where_none_is_complete(build: Callable[..., Artifact]) -> None:
    """The longer an answer the better its score, so those that are cut would win."""
    artifact = build(20, Recorder(length), method="best_of_n", n=4, prm="prm", max_tokens=90)
    mixed = 0
    for row in artifact.scan().collect().to_dicts():
        complete = [candidate["is_complete"] for candidate in row["candidates"]]
        longest = max(candidate["score"] for candidate in row["candidates"])
        mixed += any(complete) and row["score"] < longest
        assert complete[row["chosen_index"]] is any(complete)
    assert mixed


def test_samples_are_scored_and_the_first_stays_chosen(build: Callable[..., Artifact]) -> None:
    for row in build(3, Recorder(length), n=4, prm="prm").scan().collect().to_dicts():
        assert row["chosen_index"] == 0
        assert row["score"] == row["candidates"][0]["score"] == len(row["text"])


def test_a_beam_search(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    scorer = Recorder(length)
    artifact = build(5, scorer, **BEAM)
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect().to_dicts()
    for row in rows:
        texts = [candidate["text"] for candidate in row["candidates"]]
        assert 1 <= len(texts) == len(set(texts)) <= row["n"] == 2
        assert (row["method"], row["prm"]) == ("beam", "prm")
        assert [scores[-1] for scores in row["step_scores"]] == [each["score"] for each in row["candidates"]]
        assert row["requests"] > 1
    assert sum(row["requests"] for row in rows) == stub_llm.stats()["requests"] == artifact.manifest.usage.requests
    assert sum(row["prm_calls"] for row in rows) == len(scorer.items)
    usage, said = artifact.manifest.usage, stub_llm.stats()["usage"]
    assert [usage.prompt_tokens, usage.completion_tokens] == said
    assert {"cut_steps", "duplicate_steps", "cut_answers"} <= artifact.manifest.details.keys()


def test_a_beam_search_does_not_depend_on_concurrency(build: Callable[..., Artifact]) -> None:
    one = build(6, Recorder(length), root="one", concurrency=1, **BEAM)
    many = build(6, Recorder(length), root="many", concurrency=6, **BEAM)
    assert rows_of(one).equals(rows_of(many))


def test_an_answer_is_no_longer_than_its_limit(
    build: Callable[..., Artifact], stub_llm: StubServer, tokenizer_folder: Path
) -> None:
    """Also where it is written step by step; a step has a limit of its own."""
    (row,) = build(1, Recorder(length), **BEAM | {"max_tokens": 300, "width": 1}).scan().collect().to_dicts()
    assert row["requests"] > 1
    body = stub_llm.last()["body"]
    _, before = body["prompt"].split("<|im_start|>assistant\n")
    assert before
    read = len(load_tokenizer(tokenizer_folder).encode(before, add_special_tokens=False))
    assert body["max_tokens"] == 300 - read
    cut = build(2, Recorder(length), **BEAM | {"step_tokens": 3}).scan().collect().to_dicts()
    assert not any(candidate["is_complete"] for row in cut for candidate in row["candidates"])
    assert stub_llm.last()["body"]["max_tokens"] == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("section", [BEAM, {"method": "best_of_n", "n": 3, "prm": "prm"}], ids=["beam", "best_of_n"])
def test_a_score_that_is_not_finite_refuses_the_prompt(
    bad: float, section: dict[str, Any], build: Callable[..., Artifact], stub_llm: StubServer, tmp_path: Path
) -> None:
    scorer, first = Recorder(length), ""

    def score(text: str) -> float:
        nonlocal first
        first = first or text
        return bad if text == first else length(text)

    scorer.score_text = score
    with pytest.raises(QuarantineError, match=r"prm_not_finite 1"):
        build(4, scorer, concurrency=1, **section)
    (file,) = tmp_path.glob("answers/responses/1.0.0/quarantine/*.parquet")
    (refused,) = pl.read_parquet(file).to_dicts()
    assert refused["rule"] == "prm_not_finite"
    raw = json.loads(refused["raw"])
    assert str(bad) in raw["step_scores"]
    assert raw["text"].startswith("Question 0")
    before = stub_llm.stats()["requests"]
    scorer.score_text = length
    artifact = build(4, scorer, concurrency=1, **section)
    assert (artifact.manifest.rows, artifact.manifest.quarantine) == (4, {})
    if section is not BEAM:
        assert stub_llm.stats()["requests"] == before, "what was sampled before it was refused is not sampled again"


def test_a_text_that_cannot_be_scored_refuses_its_prompt_alone(build: Callable[..., Artifact]) -> None:
    scorer = Recorder(length)

    def fail(item: ScoreItem) -> None:
        if str(item.prompt).startswith("Question 1"):
            raise RequestFailedError([Outcome.INVALID_REQUEST], "too long for the PRM")

    scorer.fail = fail
    artifact = build(4, scorer, max_quarantine=0.5, **BEAM)
    assert (artifact.manifest.rows, artifact.manifest.quarantine) == (3, {"invalid_request": 1})


def test_a_prm_that_is_gone_stops_the_build_and_nothing_is_done_twice(
    build: Callable[..., Artifact], stub_llm: StubServer
) -> None:
    whole = Recorder(length)
    expected = rows_of(build(5, whole, root="undisturbed", **BEAM))
    requests = stub_llm.stats()["requests"]
    stub_llm.reset()
    scorer = Recorder(length)

    def fail(_: ScoreItem) -> None:
        if len(scorer.items) > len(whole.items) // 2:
            raise ServerError("the PRM is gone; finished work is kept")

    scorer.fail = fail
    with pytest.raises(ServerError, match="the PRM is gone"):
        build(5, scorer, concurrency=1, **BEAM)
    scorer.fail = lambda _: None
    assert rows_of(build(5, scorer, concurrency=1, **BEAM)).equals(expected)
    assert stub_llm.stats()["requests"] == requests
    assert sorted(scorer.items) == sorted(whole.items), "each text is scored once, over both runs"


def test_a_prompt_is_scored_as_soon_as_it_is_sampled(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    scorer, sampled = Recorder(length), []
    scorer.fail = lambda _: sampled.append(stub_llm.stats()["requests"])
    build(4, scorer, method="best_of_n", n=1, prm="prm", concurrency=1)
    assert sampled == [1, 2, 3, 4]


def test_a_prm_is_opened_where_something_is_left_to_answer(build: Callable[..., Artifact]) -> None:
    scorer = Recorder(length)
    assert build(2, scorer, **BEAM) == build(2, scorer, **BEAM)
    assert scorer.opened == 1
    with pytest.raises(RecipeError, match=r"responses\.prm is named, and nothing here can score"):
        build(2, **BEAM)


def test_an_id_tells_what_made_the_answer(build: Callable[..., Artifact]) -> None:
    sections: list[dict[str, Any]] = [
        {},
        {"n": 2},
        {"temperature": 0.5},
        BEAM,
        BEAM | {"width": 3},
        BEAM | {"diverse": True},
    ]
    built = [build(1, Recorder(length) if "prm" in each else None, **each) for each in sections]
    built.append(build(1, Recorder(length), scored_by=ModelIdentity(role="prm", name="prm", revision="other"), **BEAM))
    ids = [artifact.scan().collect()["response_id"].item() for artifact in built]
    assert len(set(ids)) == len(ids)
    assert len({artifact.manifest.fingerprint for artifact in built}) == len(built)
    assert build(1, width=7, diverse=True) == built[0], "the shape of a beam does not count where there is none"


def test_artifacts_without_the_columns_of_cost_are_read(build: Callable[..., Artifact]) -> None:
    artifact = build(2)
    later = ["step_scores", "requests", "prompt_tokens", "prm_calls", "prm_tokens", "seconds"]
    (path,) = (artifact.folder / "data").glob("*.parquet")
    pl.read_parquet(path).drop(later).write_parquet(path)
    rows = artifact.scan().collect()
    assert all(rows[name].to_list() == [None, None] for name in later)
    assert [problem.rule for problem in validate_artifact(artifact)] == ["sha256"], "the columns are no problem"


def test_a_forecast_of_a_beam_search_counts_its_requests(
    make_prompts: Callable[[int], Artifact], actor_section: dict[str, Any], tmp_path: Path
) -> None:
    options = BuildOptions(root=tmp_path, inputs=(str(make_prompts(3).folder),))

    def forecast(**section: Any) -> Any:
        recipe = Recipe.model_validate({"actor": actor_section, "responses": section})
        return forecast_responses(recipe, options).models[0]

    one, beam, wider = forecast(), forecast(**BEAM), forecast(**BEAM | {"width": 4})
    assert one.requests == 3
    assert 3 * 3 <= beam.requests <= 3 * (1 + 4 * 2)
    assert one.completion_tokens < beam.completion_tokens < wider.completion_tokens


def test_a_forecast_counts_what_the_reward_model_reads(
    make_prompts: Callable[[int], Artifact], actor_section: dict[str, Any], tmp_path: Path
) -> None:
    options = BuildOptions(root=tmp_path, inputs=(str(make_prompts(2).folder),))
    at_server = {"base_url": "http://127.0.0.1:9/v1", "model": "scorer", "tokenizer": "folder"}
    prices = {"actor": {"input": 1, "output": 1}, "scorer": {"input": 1_000_000}}

    def forecast(**section: Any) -> Any:
        recipe = Recipe.model_validate({"actor": actor_section, "prices": prices, "responses": section})
        return forecast_responses(recipe, options)

    here, there = (forecast(method="best_of_n", n=3, prm=prm) for prm in ("folder/prm", at_server))
    assert [(load.role, load.name) for load in here.models] == [("generation", "actor"), ("prm", "prm")]
    assert (here.models[1].requests, there.models[1].requests) == (2 * 3, 2 * 3 * 4), "a pass an answer, or one a step"
    read = here.models[0].prompt_tokens
    assert here.models[1].prompt_tokens == pytest.approx(3 * (read + 2 * 4 * 60), abs=2)
    assert there.models[1].prompt_tokens == pytest.approx(3 * (4 * read + 2 * (1 + 2 + 3 + 4) * 60), abs=8)
    assert (here.models[1].cost, there.models[1].cost) == (0, there.models[1].prompt_tokens)
    assert "PRM calls" in here.words
    assert "PRM tokens" in here.words
    assert "prm" not in forecast(n=3).words.lower(), "without one it reads nothing"

    here, there = (forecast(**BEAM | {"prm": prm}) for prm in ("folder/prm", at_server))
    assert here.models[0] == there.models[0]
    assert 2 * 6 <= here.models[1].requests == there.models[1].requests, "a level has one more step a beam"
    assert here.models[1].prompt_tokens == there.models[1].prompt_tokens > here.models[0].completion_tokens
    cut_short = BEAM | {"max_depth": 1}
    here, there = (forecast(**cut_short | {"prm": prm}) for prm in ("folder/prm", at_server))
    assert here.models[1].requests < there.models[1].requests, "what is written to its end has several more"


def test_a_cut_answer_is_kept_as_incomplete(build: Callable[..., Artifact]) -> None:
    artifact = build(3, max_tokens=6)
    for row in artifact.scan().collect().to_dicts():
        assert not row["candidates"][0]["is_complete"]
        assert row["text"]


def test_an_answer_of_no_text_is_a_row(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    stub_llm.control(faults={"empty": 1.0})
    artifact = build(2)
    assert artifact.scan().collect()["text"].to_list() == ["", ""]
    assert validate_artifact(artifact) == []


def test_the_answer_does_not_depend_on_concurrency(build: Callable[..., Artifact]) -> None:
    one = build(8, root="one", concurrency=1, n=2)
    many = build(8, root="many", concurrency=8, n=2)
    assert rows_of(one).equals(rows_of(many))


def test_another_prm_is_another_artifact(build: Callable[..., Artifact]) -> None:
    first = build(2, Recorder(length), method="best_of_n", n=2, prm="prm")
    assert build(2, Recorder(length), method="best_of_n", n=2, prm="prm") == first
    assert build(2, n=2) != first


BUILD = """
import json, sys
from contextlib import asynccontextmanager
from pathlib import Path
from stairdata.generators.responses.build import build_responses
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata.search.scoring import StepScores
from stairdata_schemas.grammar import split_steps
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.rendering import load_tokenizer

recipe, prompts, root, log = sys.argv[1:]


class Scorer:
    async def score(self, items):
        values = []
        with open(log, "a") as file:
            for item in items:
                file.write(json.dumps(item) + "\\n")
                ends = range(item.known + 1, len(split_steps(item.text) or [""]) + 1)
                values.append([float(len("".join(split_steps(item.text)[:end]))) for end in ends])
        return StepScores(values, len(items), sum(len(item.text) for item in items))


@asynccontextmanager
async def open_scorer(folder, budget, waiting):
    yield Scorer()


options = BuildOptions(root=Path(root), inputs=(prompts,))
prm = ModelIdentity(role="prm", name="prm", revision="abc")
print(build_responses(Recipe.model_validate_json(recipe), options, prm, open_scorer).reference)
"""


@pytest.mark.slow
def test_a_beam_build_killed_twice_equals_an_undisturbed_one(
    build: Callable[..., Artifact],
    stub_llm: StubServer,
    actor_section: dict[str, Any],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> None:
    undisturbed = Recorder(length)
    whole = rows_of(build(6, undisturbed, root="undisturbed", **BEAM))
    requests = stub_llm.stats()["requests"]
    stub_llm.reset()
    recipe = {"actor": {**actor_section, "concurrency": 4}, "responses": BEAM | {"concurrency": 3}}
    log = tmp_path / "scored.jsonl"
    where = [str(make_prompts(6).folder), str(tmp_path / "killed"), str(log)]
    command = [sys.executable, "-c", BUILD, json.dumps(recipe), *where]
    for share in (0.4, 0.4):
        stub_llm.control(reset=True, delay=0.002)
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stub_llm.control(kill_pid=killed.pid, kill_after=int(share * requests))
        assert killed.wait(timeout=120) == -signal.SIGKILL
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert finished.stdout == "responses@1.0.0\n"
    rows = pl.read_parquet(tmp_path / "killed" / "responses" / "1.0.0" / "data" / "*.parquet").drop("seconds")
    assert rows.equals(whole)
    scored = [json.dumps(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
    assert {*scored} == {json.dumps(item) for item in undisturbed.items}
    assert len(scored) - len(set(scored)) <= 2 * 3 * 6, "a batch for each prompt in flight, at most, is scored again"
    assert not list((tmp_path / "killed").glob("responses/*/.build"))


@pytest.mark.slow
def test_the_benchmark_of_results_averages_the_chosen_answers(build: Callable[..., Artifact]) -> None:
    best = build(6, Recorder(length), method="best_of_n", n=4, prm="folder/prm")
    beam = build(6, Recorder(length), **BEAM)
    script = Path(__file__).parents[4] / "benchmarks" / "search_results.py"
    command = [sys.executable, str(script), str(best.folder), str(beam.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in done.stdout.splitlines()}
    assert list(lines)[4:] == ["best of 1", "best of 2", "best of 4", f"beam, {beam.reference}"]
    for name, artifact in (("best of 4", best), (f"beam, {beam.reference}", beam)):
        rows = rows_of(artifact)
        assert lines[name][2].startswith(f"{fmean(rows['score']):.3f}")
        assert lines[name][1] == f"{fmean(rows['completion_tokens']):.0f}"
    assert float(lines["best of 1"][2].split()[0]) < float(lines["best of 4"][2].split()[0])
