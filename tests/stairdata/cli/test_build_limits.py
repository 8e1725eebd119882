"""Budgets, dry runs and pilots on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import StubServer
    from tests.stairdata.cli.conftest import Ended

Run = Callable[..., "Ended"]


@pytest.fixture
def trees(
    run: Run, stub_llm: StubServer, actor_section: dict[str, Any], waits: list[float], tmp_path: Path
) -> Callable[..., Ended]:
    """Build trees from six prompts."""
    rows = [{"prompt": f"Prompt {number}", "task": ("safety", "helpfulness")[number % 2]} for number in range(6)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("build", "prompts", "--set", "prompts.sources=[{path: q.jsonl}]").status == 0
    recipe = {
        "actor": {**actor_section, "retries": 1},
        "trees": {"iterations": 6, "samples": 2, "max_depth": 3},
        "prices": {"actor": {"input": 1.0, "output": 2.0}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    return lambda *arguments: run("build", "trees", "--recipe", "r.yaml", *arguments)


def numbers(out: str) -> dict[str, float]:
    return {name: float(value.replace(",", "")) for name, value in re.findall(r"^  (.*?)  +([\d,.]+)$", out, re.M)}


def test_a_dry_run_calls_nothing_and_writes_nothing(
    trees: Callable[..., Ended], stub_llm: StubServer, tmp_path: Path
) -> None:
    ended = trees("--dry-run")
    assert ended.status == 0, ended.err
    assert ended.out.startswith("trees: 6 to grow\nassumed, not measured: ")
    said = numbers(ended.out)
    assert {"generation requests", "judge requests", "prompt tokens", "completion tokens", "cost"} == set(said)
    assert said["generation requests"] >= 6
    assert stub_llm.stats()["requests"] == 0
    assert not (tmp_path / "artifacts" / "trees").exists()


@pytest.mark.parametrize("judge", ["self", "rule", "reference"])
@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_dry_run_is_of_the_right_size(
    judge: str, fused: str, trees: Callable[..., Ended], stub_llm: StubServer
) -> None:
    """The made-up policy is not the stub, but requests follow the search."""
    options = ("--set", f"trees.judge.kind={judge}", "--set", f"trees.fused={fused}")
    said = numbers(trees(*options, "--dry-run").out)
    assert trees(*options).status == 0
    counted = stub_llm.stats()
    ratings = counted["ratings"]
    assert said["generation requests"] == pytest.approx(counted["paths"]["/v1/completions"] - ratings, rel=0.6)
    if judge == "reference":
        assert said["judge requests"] == ratings == 0
    else:
        assert said["judge requests"] == pytest.approx(ratings, rel=0.6)


def test_a_pilot_is_measured_and_kept(trees: Callable[..., Ended], stub_llm: StubServer) -> None:
    ended = trees("--dry-run", "--pilot", "3")
    assert ended.status == 0, ended.err
    assert "6 in all, 3 of them grown and kept for trees@1.0.0" in ended.out
    piloted = stub_llm.stats()["requests"]
    said = numbers(ended.out)
    assert said["all requests"] == pytest.approx(2 * piloted, abs=1)
    assert said["cost"] > 0 or said["completion tokens"] < 5000
    assert trees("--dry-run", "--pilot", "3").out == ended.out, "the pilot is not grown twice"
    assert stub_llm.stats()["requests"] == piloted
    assert trees().out == "trees@1.0.0\n"
    assert trees("--dry-run", "--pilot", "3").out == "trees@1.0.0 is finished; there is nothing left to ask\n"


def test_a_dry_run_forecasts_what_is_left(trees: Callable[..., Ended], stub_llm: StubServer) -> None:
    whole = numbers(trees("--dry-run").out)
    trees("--dry-run", "--pilot", "4")
    ended = trees("--dry-run")
    assert ended.out.startswith("trees: 2 to grow left; trees@1.0.0 is unfinished and has 4 already\n")
    assert numbers(ended.out)["generation requests"] == pytest.approx(whole["generation requests"] / 3, rel=0.1)
    assert trees("--dry-run", "--fresh").out.startswith("trees: 6 to grow\n")
    assert trees("--dry-run", "--limit", "5").out.startswith("trees: 5 to grow\n"), "that is another build"
    assert trees().status == 0
    assert trees("--dry-run").out == "trees@1.0.0 is finished; there is nothing left to ask\n"


def test_a_dry_run_without_prices_says_so(trees: Callable[..., Ended]) -> None:
    ended = trees("--dry-run", "--set", "prices={}")
    assert "cost unknown: the recipe's prices have no 'actor'" in ended.out


@pytest.mark.parametrize("kind", ["responses", "structured-cot", "prompts"])
def test_a_dry_run_of_other_kinds(kind: str, trees: Callable[..., Ended], run: Run) -> None:
    ended = run("build", kind, "--recipe", "r.yaml", "--dry-run")
    assert ended.status == 0, ended.err
    assert ("asks no model" in ended.out) == (kind == "prompts")
    assert run("build", kind, "--recipe", "r.yaml", "--dry-run", "--pilot", "2").status == 2


def test_a_spent_budget_ends_with_1_and_a_message(trees: Callable[..., Ended]) -> None:
    ended = trees("--max-total-tokens", "500")
    assert (ended.status, ended.out) == (1, "")
    assert re.search(r"error: \d+ tokens are spent and the next request may use \d+: more than --max-total", ended.err)
    ended = trees("--max-cost", "0.0001")
    assert ended.status == 1
    assert "more than --max-cost 0.0001; finished work is kept" in ended.err
    assert trees("--max-seconds", "0").status == 1
    ended = trees()
    assert ended.out == "trees@1.0.0\n"
    assert "how requests ended:" in ended.err
    assert "cost 0.0" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("prompts", "--executor", "ray"),
        ("responses", "--endpoints", "http://127.0.0.1:1/v1"),
        ("trees", "--pilot", "3"),
        ("trees", "--executor", "cluster"),
        ("trees", "--max-total-tokens", "0"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], run: Run) -> None:
    ended = run("build", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        (["jugde=http://a/v1"], "--endpoints jugde: build trees asks no model of that role; did you mean 'judge'?"),
        (["prm=http://a/v1"], "--endpoints prm: build trees asks no model of that role; use one of actor, judge, hel"),
        (["judge=http://a/v1", "judge=http://b/v1"], "--endpoints judge is there twice; give all servers of a model"),
        (["http://a/v1", "actor=http://b/v1"], "--endpoints actor is there twice; give all servers of a model in one"),
        (["judge="], "--endpoints judge names no server; give at least one URL"),
        (["judge=http://a/v1,helpfulness=http://b/v1"], "names a second role, 'helpfulness'; give each --endpoints on"),
        (["judge=http://a/v1,http://a/v1/"], "--endpoints judge: 'http://a/v1' is given twice; give each server once"),
    ],
)
def test_roles_that_can_not_be_meant(endpoints: list[str], words: str, run: Run) -> None:
    ended = run("build", "trees", *(word for each in endpoints for word in ("--endpoints", each)))
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err


def test_batch_alone_submits_and_its_actions_follow(
    trees: Callable[..., Ended], run: Run, stub_llm: StubServer
) -> None:
    teacher = f"structured_cot.teacher={{base_url: {stub_llm.base_url}, model: actor}}"
    build = ("build", "structured-cot", "--set", teacher)
    stub_llm.control(batches={"ends": "in_progress"})
    for arguments in (("--batch",), ("--batch", "--limit", "3"), ("--batch", "status"), ("--batch=cancel",)):
        ended = run(*build, *arguments)
        assert (ended.status, ended.out) == (0, ""), ended.err
        assert "batches:" in ended.err
    stub_llm.control(batches={})
    ended = run(*build, "--limit", "3", "--batch", "collect")
    assert ended.out == "structured_cot@1.1.0\n"
    assert run(*build, "--batch", "collct").status == 2
    assert run("build", "trees", "--recipe", "r.yaml", "--batch").status == 2
