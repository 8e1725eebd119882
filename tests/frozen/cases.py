"""One build of each kind from each source, as a user would type it.

In arguments and recipes `$URL` is the stub's address and `$PORT` its port, `$TOKENIZER` the folder of a tokenizer,
`$MODEL` that of a model that no server could load, `$BASE` and `$PRM` those of tiny models, and `@NAME` the folder of
the artifact of another case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """Commands that run one after another in one folder of artifacts; the last one's artifact counts."""

    commands: Sequence[str]
    recipe: Json = field(default_factory=dict)
    """What `--recipe recipe.json` of the commands holds."""
    stub: Json = field(default_factory=dict)
    """Options of the stub language model."""
    hub: str | None = None
    """A dataset that the Hub has, by the name of the file in it."""
    fails: bool = False
    """The last command fails once it has said what it builds: its server can't be started here."""
    is_slow: bool = False


QUESTIONS = {"sources": [{"path": "questions.jsonl"}]}
ACTOR = {"base_url": "$URL", "model": "actor", "tokenizer": "$TOKENIZER"}
TEACHER = {"base_url": "$URL", "model": "actor"}
JUDGE = {"base_url": "$URL", "model": "other"}
TREES = {"iterations": 6, "samples": 2, "max_depth": 3}
WIDE = {"iterations": 25, "samples": 3, "max_depth": 4}
ASKED = {"name": "asked", "path": "questions.jsonl", "columns": {"prompt": "prompt"}, "score": "refusal"}
PUBLISHED = "thu-ml/STAIR-SFT"


def build_command(kind: str, *arguments: str) -> str:
    """Write a command of which no refused row makes a failure."""
    return " ".join(["build", kind, "--recipe recipe.json --max-quarantine 1", *arguments])


def _trees(section: Json, *arguments: str) -> Case:
    recipe = {"actor": ACTOR, "trees": TREES | section}
    return Case([build_command("trees", "--input @prompts", *arguments)], recipe, {"also": ["other"]})


def _teachers(section: Json, *arguments: str, **stub: Any) -> Case:
    recipe = {"structured_cot": {"teacher": TEACHER} | section}
    return Case([build_command("structured-cot", "--input @prompts", *arguments)], recipe, {"also": ["other"]} | stub)


def _pairs(kind: str, source: str, section: Json, *arguments: str) -> Case:
    return Case([build_command(kind, f"--input @{source}", *arguments)], {kind.replace("-", "_"): section})


def _responses(section: Json, *arguments: str, is_slow: bool = False) -> Case:
    recipe = {"actor": ACTOR, "responses": section}
    return Case([build_command("responses", "--input @prompts", *arguments)], recipe, is_slow=is_slow)


MIXED = {
    "path": "mixed.jsonl",
    "columns": {"prompt": "asked.words", "task": "kind"},
    "where": {"language": "English"},
    "skip": 1,
    "count": 6,
    "name": "songs",
    "license": "cc-by-4.0",
}
MANY_SOURCES = {
    "sources": [
        MIXED,
        {"path": "table.csv", "near_duplicates": True},
        {"path": "saferlhf.jsonl", "like": "PKU-Alignment/PKU-SafeRLHF", "near_duplicates": False},
        {"path": "without_task.jsonl", "task": "helpfulness"},
    ],
    "near_duplicates": {"threshold": 0.9},
    "decontaminate": ["evaluation.jsonl", {"path": "questions.jsonl", "columns": {"prompt": "prompt"}}],
    "contamination": {"ngram": 9},
    "languages": ["en", "de"],
    "min_characters": 5,
    "max_characters": 400,
    "max_tokens": 200,
    "tokenizer": "$TOKENIZER",
}
HUB_SOURCE = {
    "hub": "org/questions",
    "columns": {"prompt": "asked.words", "task": "kind"},
    "revision": "main",
    "split": "train",
}

CASES: dict[str, Case] = {
    # prompts
    "prompts": Case([build_command("prompts")], {"prompts": QUESTIONS}),
    "prompts_of_many_sources": Case([build_command("prompts", "--limit 12")], {"seed": 7, "prompts": MANY_SOURCES}),
    "prompts_labelled": Case(
        [build_command("prompts", "--decontaminate evaluation.jsonl")],
        {"prompts": {"sources": [{"path": "without_task.jsonl"}], "task_judge": JUDGE | {"max_tokens": 32}}},
        {"also": ["other"], "judge_text": "Task: safety"},
    ),
    "prompts_with_twins": Case([build_command("prompts")], {"prompts": QUESTIONS | {"twins": {"teacher": TEACHER}}}),
    "prompts_of_the_hub": Case([build_command("prompts")], {"prompts": {"sources": [HUB_SOURCE]}}, hub="mixed.jsonl"),
    "prompts_imported": Case(["import --from thu-ml --kind prompts questions.json"]),
    # structured_cot
    "cot_of_a_file": Case(
        [build_command("structured-cot", "--limit 2")], {"structured_cot": {"path": "written.jsonl"}}
    ),
    "cot_published": Case(
        [build_command("structured-cot")], {"structured_cot": {"path": "STAIR-SFT.json", "like": PUBLISHED}}
    ),
    "cot_published_on_the_hub": Case(
        [build_command("structured-cot")], {"structured_cot": {"hub": PUBLISHED}}, hub="STAIR-SFT.json"
    ),
    "cot_of_trees": Case([build_command("structured-cot", "--input @trees_wide")], {}),
    "cot_of_imported_trees": Case(
        [build_command("structured-cot", "--input @trees_imported")],
        {"structured_cot": {"from_trees": {"min_value": 0.5, "task": "safety", "tokenizer": "unread_tokenizer"}}},
    ),
    "cot_of_a_teacher": _teachers({}),
    "cot_of_a_teacher_in_text": _teachers({"teacher": TEACHER | {"format": "text", "temperature": None}}),
    "cot_of_a_teacher_judged": _teachers({"judge": JUDGE | {"reasks": 1}}, harm=0.5),
    "cot_of_two_teachers": _teachers(
        {
            "judge": JUDGE,
            "teachers": {"careful": TEACHER | {"temperature": 0.1, "format": "text"}},
            "gate": {"max_steps": 8},
        },
        "--teachers careful,other",
    ),
    "cot_of_one_model_twice": _teachers(
        {"judge": JUDGE, "teachers": {"a": TEACHER, "b": TEACHER | {"max_tokens": 900}}}, "--teachers a,b"
    ),
    "cot_by_templates": _teachers({"templates": {"safety": "safety.jinja", "helpfulness": "helpfulness.jinja"}}),
    "cot_limited": _teachers({"gate": {"min_characters": 10, "compliance": False}}, "--limit 3"),
    "cot_tried_again": Case(
        [
            build_command("structured-cot", "--input @prompts"),
            build_command("structured-cot", "--input @prompts", "--retry-quarantined"),
            build_command("structured-cot", "--input @prompts", "--retry-quarantined"),
        ],
        {"structured_cot": {"teacher": TEACHER, "gate": {"max_steps": 2}}},
    ),
    # trees
    "trees": _trees({}),
    "trees_wide": _trees(WIDE, "--limit 4"),
    "trees_by_rule": _trees({"judge": {"kind": "rule", "style": "direct"}, "k1": 2.0, "k2": 0.5}, "--limit 3"),
    "trees_by_reference": _trees(
        {"judge": {"kind": "reference"}, "fused": False, "visit_all_leaves": False}, "--limit 3"
    ),
    "trees_by_another_judge": _trees(
        {"judge": {"kind": "endpoint", "endpoint": JUDGE, "keep_text": True, "cache": False}}, "--limit 3"
    ),
    "trees_by_pucb": _trees({"score": "pucb", "prior": "geometric", "trees_per_prompt": 2, "round": 2}, "--limit 2"),
    "trees_parallel": _trees({"parallel": 2, "virtual_loss": 0.5}, "--limit 3"),
    "trees_on_two_servers": _trees({}, "--limit 4 --endpoints $URL,http://localhost:$PORT/v1"),
    "trees_of_a_served_model": Case(
        [build_command("trees", "--input @prompts")],
        {"actor": {"path": "$MODEL", "port": "$PORT", "max_model_len": 2048}, "trees": TREES},
        fails=True,
    ),
    "trees_imported": Case(["import --from thu-ml --kind trees --prompts @prompts_imported searched.json"]),
    # pairs
    "pairs": _pairs("preference-pairs", "trees_wide", {}),
    "pairs_of_trajectories": _pairs(
        "preference-pairs", "trees_wide", {"granularity": "trajectory", "max_repeats": 2, "max_similarity": 0.95}
    ),
    "pairs_held_out": _pairs(
        "preference-pairs",
        "trees_wide",
        {"hold_out": 0.5, "part": "held_out", "min_margin": 0.2, "min_margin_by_depth": {1: 0.3}, "max_per_tree": 5},
        "--limit 5",
    ),
    "pairs_reviewed": _pairs(
        "preference-pairs", "trees_wide", {"reviews": {"overruled": "flip"}}, "--reviews @reviews"
    ),
    "pairs_of_imported_trees": _pairs("preference-pairs", "trees_imported", {"tokenizer": "unread_tokenizer"}),
    "prm_pairs": _pairs("prm-pairs", "trees_wide", {"max_per_depth": 6, "max_per_tree": 12}),
    "prm_pairs_of_imported_trees": _pairs("prm-pairs", "trees_imported", {"max_per_depth": None}),
    # reviews
    "reviews": Case(
        [
            "review export @pairs --file review.jsonl --limit 6",
            "review import review.jsonl --input @pairs --reviewer ann --folder reviewers",
        ]
    ),
    # responses
    "responses": _responses({}),
    "responses_several": _responses({"n": 3, "temperature": 0.7, "max_tokens": 512}, "--limit 4"),
    "responses_best_of_n": _responses({"method": "best_of_n", "n": 3, "prm": "$PRM"}, is_slow=True),
    "responses_beam": _responses(
        {"method": "beam", "width": 2, "expansions": 2, "max_depth": 3, "prm": "$PRM"}, is_slow=True
    ),
    # evaluations
    "evaluations": Case(
        [build_command("evaluations")],
        {
            "actor": ACTOR,
            "responses": {"n": 2},
            "evaluations": {
                "benchmarks": [ASKED],
                "attacks": {"names": ["none", "rot13"], "count": 2},
                "judge": {**JUDGE, "kind": "rubric", "reads": "whole"},
            },
        },
        {"also": ["other"]},
    ),
    "evaluations_of_responses": Case(
        [build_command("evaluations", "--input @responses_several", "--limit 3")], {"evaluations": {}}
    ),
}
"""Cases by name."""


def _training(stage: str, source: str) -> Case:
    section = {"max_steps": 1, "batch_size": 2, "gradient_accumulation": 1, "precision": "fp32", "seed": 3}
    return Case([f"train {stage} --recipe recipe.json --input @{source} --model $BASE"], {stage: section}, is_slow=True)


TRAININGS = {
    "sft": _training("sft", "cot_of_a_teacher"),
    "dpo": _training("dpo", "pairs"),
    "prm": _training("prm", "prm_pairs"),
}
"""Trainings by stage."""
