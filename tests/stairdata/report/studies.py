"""A run's folder with a little of everything that a report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, Report, begin_build
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import BuildUsage, ModelIdentity, Parent
from tests.schemas.test_kinds import SOUND
from tests.stairdata.forests import Shape, artifact_of, tree_of

PROMPTS = 12
REFUSAL = "I'm sorry, I can't help with that."
SHAPE: Shape = [(1, 0, "good", False, 2.0, 4), (2, 0, "worse", False, -1.0, 4), (3, 1, " end", True, 3.0, 2)]
HASH = {"base": "aaaaaaaa11111111", "dpo-1": "bbbbbbbb22222222"}


def prompt(number: int) -> dict[str, Any]:
    text = f"prompt {number}"
    return {
        "prompt_id": identity.prompt_id(text),
        "prompt": text,
        "task": "safety" if number % 2 else "helpfulness",
    }


def made(root: Path, kind: str, rows: list[dict[str, Any]], report: Report | None = None, **plan: Any) -> Artifact:
    """Build an artifact of rows."""
    schema = polars_schema(kind)
    frame = pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema, strict=False)
    build = begin_build(BuildPlan(kind, "test/1", {"rows": len(rows), **plan.pop("configuration", {})}, **plan), root)
    assert isinstance(build, Build)
    with build:
        return build.finish([frame], report=report or Report())


def response(number: int, model: str, text: str, **other: Any) -> dict[str, Any]:
    name = f"{number} {model} {sorted(other)}"
    candidates = [{"text": text, "score": None, "is_complete": True, "tokens": 20 + number}]
    row = SOUND["responses"]() | {
        "method": "sample", "n": 1, "candidates": candidates, "chosen_index": 0, "text": text, "score": None,
        "completion_tokens": 20 + number, "step_scores": None, "model": model,
    }  # fmt: skip
    return row | prompt(number) | {"response_id": identity.prompt_id(name)} | other


def best_of_two(number: int, model: str, text: str) -> dict[str, Any]:
    candidates = [
        {"text": "Sure, here it is.", "score": 0.1, "is_complete": True, "tokens": 9},
        {"text": text, "score": 0.9, "is_complete": True, "tokens": 11},
    ]
    more = {"candidates": candidates, "chosen_index": 1, "score": 0.9, "n": 2, "method": "best_of_n"}
    return response(number, model, text, completion_tokens=20, **more)


def answer(number: int, model: str, words: str = "") -> str:
    """What a model says: the trained one refuses all that is harmful, the other a part of it, and something else."""
    refuses = number % 2 == 1 and (model == "dpo-1" or number % 4 == 1)
    return f"{REFUSAL} {words}" if refuses or (model == "base" and number == 4) else f"Sure, here it is. {words}"


def evaluation(number: int, model: str, attack: str = "none", words: str = "", **other: Any) -> dict[str, Any]:
    text = answer(number, model if attack == "none" else "base", words)
    refused = text.startswith(REFUSAL)
    task = prompt(number)["task"]
    return SOUND["evaluations"]() | {
        "prompt_id": prompt(number)["prompt_id"], "task": task, "benchmark": "mine", "attack": attack,
        "model": f"{model}@{HASH[model][:8]}", "response": text, "refused": refused,
        "score": float(refused == (task == "safety")), "safety": None,
        "response_id": response(number, model, text)["response_id"],
        "attacked_prompt": None if attack == "none" else f"{attack} {words}",
        "details": json.dumps({"prompt": f"prompt {number} {words}"}),
    } | other  # fmt: skip


def training(method: str, data: Artifact | None, losses: list[float], **other: Any) -> dict[str, Any]:
    """What training.json of a model folder says."""
    said = (
        {"kind": data.kind, "version": data.manifest.version, "content_hash": data.manifest.content_hash}
        if data
        else {}
    )
    metrics = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    return {
        "identity": {"trainer": f"{method}/2"}, "data": said, "base_model": {"name": "base", "hash": HASH["base"]},
        "metrics": metrics, "warnings": [], **other,
        "summary": {"method": method, "rows": 4, "tokens": 400, "steps": len(losses), "seconds": 12.5},
    }  # fmt: skip


MEASURE = {"value": 0.75, "low": 0.5, "high": 0.9, "prompts": 8, "rows": 30}
HELD_OUT = {
    "accuracy": MEASURE,
    "accuracy_by_depth": {"1": MEASURE},
    "length_rule": {"prefers": "shorter", "accuracy": MEASURE | {"value": 0.6}},
    "better_than_length": True,
}


def make_study(folder: Path, words: str = "") -> Path:
    """Make a run's folder.

    Args:
        folder: of the run.
        words: put into every text that a model or a stranger wrote.
    """
    root = folder / "artifacts"
    prompts = made(root, "prompts", [SOUND["prompts"]() | prompt(number) for number in range(PROMPTS)])
    trees = artifact_of(root, [tree_of(SHAPE, number) for number in range(4)], models=[_actor("base")])
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=root))
    for model in HASH:
        rows = [response(number, model, answer(number, model, words)) for number in range(PROMPTS)]
        made(root, "responses", rows, models=[_actor(model)], parents=[prompts.as_parent()])
    best = [best_of_two(number, "dpo-1", answer(number, "dpo-1", words)) for number in range(PROMPTS)]
    made(root, "responses", best, models=[_actor("dpo-1")], configuration={"n": 2}, parents=[prompts.as_parent()])
    cut = evaluation(0, "dpo-1", refused=None, score=None, details=json.dumps({"outcome": "cut"}))
    judged = [cut, *(evaluation(number, "dpo-1", words=words) for number in range(1, PROMPTS))]
    judged += [evaluation(number, "base", words=words) for number in range(PROMPTS)]
    judged += [evaluation(number, model, "rot13", words) for model in HASH for number in range(1, PROMPTS, 2)]
    place = {"model": judged[0]["model"], "benchmark": "mine", "attack": "none", "judge": "rule", "reads": "answer"}
    details = {"unread": [place | {"rule": "malformed", "rows": 3}]}
    usage = BuildUsage(requests=30, prompt_tokens=300, completion_tokens=900, cost=1.25)
    notes = [f"a note {words}"]
    made(root, "evaluations", judged, Report(usage=usage, notes=notes, details=details), parents=[prompts.as_parent()])
    agreement = {
        "answers": 8, "items": 4, "reviewers": 2, "verdict": {"alpha": 0.5, "pairwise": 0.75, "pairs": 4},
        "against_value": {"share": 0.9, "of": 8},
    }  # fmt: skip
    made(root, "reviews", [SOUND["reviews"]()], Report(details={"agreement": agreement}), parents=[pairs.as_parent()])
    _write(folder / "models" / "dpo-1" / "training.json", training("dpo", pairs, [0.7, 0.65, 0.6]))
    _write(
        folder / "models" / "prm" / "training.json",
        training("prm", pairs, [0.7 - step / 200 for step in range(60)], held_out=HELD_OUT),
    )
    (folder / "rounds.csv").write_text("round,model,grammar,refusals_safety\n,base,0.1,0.5\n1,dpo-1,0.9,1.0\n")
    _write(folder / "summary.json", {"stages": [{"stage": "trees", "round": 1, "artifact": trees.reference}]})
    return folder


def _actor(name: str) -> ModelIdentity:
    return ModelIdentity(role="actor", name=name, revision=HASH[name])


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def stray(root: Path) -> Artifact:
    """Return responses whose parent is not there."""
    parent = Parent(kind="prompts", version="9.0.0", content_hash="c" * 64)
    return made(root, "responses", [response(0, "base", "Hello.")], models=[_actor("base")], parents=[parent])
