from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dataframely as dy
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas import identity
from stairdata_schemas.errors import UsageError
from stairdata_schemas.kinds import (
    KINDS,
    SCHEMA_VERSION,
    arrow_schema,
    features,
    json_schema,
    kind_name,
    polars_schema,
    row_schema,
)

# The design's table of columns, `?` for nullable, and the type of each that is no string: a contract, so by hand.
COLUMNS = {
    "prompts": """
        prompt_id, prompt, task, source, category?, reference_answer?, reference_is_safe?: bool, twin_of?
    """,
    "structured_cot": """
        prompt_id, prompt, task, steps: list<struct{title, body}>, output, completion, teacher?, finish?,
        prompt_tokens?: i64, completion_tokens?: i64, alternatives?: list<struct{completion, teacher, score?: f64}>,
        thoughts?
    """,
    "trees": """
        tree_id, prompt_id, prompt, task?, actor?, round?: i64, nodes: list<struct{node_id: i32, parent_id: i32,
        depth: i32, step, is_terminal: bool, visits: i32, value_sum: f64, prior?: f64, reward?: f64,
        helpfulness?: f64, safety?: f64, rollouts: list<struct{text, helpfulness?: f64, safety?: f64, reward: f64}>,
        tokens?: i32}>, iterations?: i64, seed?: i64, requests?: i64, prompt_tokens?: i64, completion_tokens?: i64,
        seconds?: f64, judgements?: list<struct{node_id: i32, rollout?: i32, aspect, text}>
    """,
    "preference_pairs": """
        pair_id, tree_id, prompt_id, prompt, task?, round?: i64, chosen, rejected, prefix_length: i64, depth: i64,
        chosen_value: f64, rejected_value: f64, margin: f64, chosen_visits: i64, rejected_visits: i64,
        chosen_is_terminal: bool, rejected_is_terminal: bool, chosen_node_id: i32, rejected_node_id: i32, granularity
    """,
    "prm_pairs": """
        pair_id, tree_id, prompt_id, prompt, task?, round?: i64, chosen, rejected, prefix_length: i64, depth: i64,
        chosen_value: f64, rejected_value: f64, margin: f64, chosen_visits: i64, rejected_visits: i64,
        chosen_is_terminal: bool, rejected_is_terminal: bool, chosen_node_id: i32, rejected_node_id: i32, granularity
    """,
    "responses": """
        response_id, prompt_id, prompt, task?, method, model, prm?, n: i32,
        candidates: list<struct{text, score?: f64, is_complete: bool, tokens: i32}>, chosen_index: i32, text,
        score?: f64, completion_tokens: i64, step_scores?: list<list<f64>>, requests?: i64, prompt_tokens?: i64,
        prm_calls?: i64, prm_tokens?: i64, seconds?: f64
    """,
    "evaluations": """
        prompt_id, benchmark, attack, response_id, sample: i32, attacked_prompt?, task?, model, method, response,
        refused?: bool, helpfulness?: f64, safety?: f64, score?: f64, judge, reads, details?
    """,
    "reviews": """
        item_kind, item_id, reviewer, verdict?, safe?, comment?, spans?: list<struct{side, start: i32, end: i32}>,
        answers?, shown_first?, guideline_version, submitted_at: datetime[us, UTC]
    """,
}
KEYS = {
    "prompts": ["prompt_id"],
    "structured_cot": ["prompt_id", "completion"],
    "trees": ["tree_id"],
    "preference_pairs": ["pair_id"],
    "prm_pairs": ["pair_id"],
    "responses": ["response_id"],
    "evaluations": [
        "prompt_id",
        "benchmark",
        "attack",
        "response_id",
        "sample",
        "model",
        "judge",
        "reads",
    ],
    "reviews": ["item_kind", "item_id", "reviewer"],
}
# Rules over several values; those of a single column are known by what the column says of itself.
RULES = {
    "prompts": {"a_twin_is_of_another_prompt"},
    "trees": {
        "node_ids_are_dense",
        "first_node_is_the_root",
        "parents_come_first",
        "depth_is_one_below_the_parent",
        "terminal_nodes_have_no_children",
        "unvisited_nodes_have_no_value",
    },
    "preference_pairs": {
        "chosen_differs_from_rejected",
        "prefix_is_shared",
        "steps_follow_the_prefix",
        "margin_is_the_difference",
        "margin_is_not_zero",
    },
    "responses": {"text_is_the_chosen_candidate", "step_scores_are_of_the_candidates"},
}
RULES["prm_pairs"] = RULES["preference_pairs"] | {"margin_is_positive"}

PROMPT = {"prompt_id": identity.prompt_id("p"), "prompt": "p", "task": "safety"}
Change = Callable[[Any], None]


def in_design_notation(columns: dict[str, dy.Column]) -> str:
    named = (f"{name}{'?' if column.nullable else ''}{_type(column)}" for name, column in columns.items())
    return ", ".join(named)


def _type(column: dy.Column) -> str:
    if isinstance(column, dy.List) and isinstance(column.inner, dy.List):
        return f": list<list<{_type(column.inner.inner).removeprefix(': ')}>>"
    if isinstance(column, dy.List):
        return f": list<struct{{{in_design_notation(_fields(column.inner))}}}>"
    names = {pl.Boolean(): "bool", pl.Int32(): "i32", pl.Int64(): "i64", pl.Float64(): "f64"}
    if column.dtype == pl.String():
        return ""
    return f": {names.get(column.dtype, 'datetime[us, UTC]' if column.dtype == pl.Datetime('us', 'UTC') else '?')}"


def _fields(column: dy.Column) -> dict[str, dy.Column]:
    assert isinstance(column, dy.Struct)
    assert not column.nullable
    return dict(column.inner)


def broken_rules(kind: str, *rows: dict[str, Any]) -> set[str]:
    frame = pl.DataFrame(rows, schema=polars_schema(kind), strict=False)
    return set(row_schema(kind).filter(frame, cast=True).failure.counts())


def node(node_id: int, parent_id: int, depth: int, **other: Any) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "parent_id": parent_id,
        "depth": depth,
        "step": f"step {node_id}" if depth else "",
        "is_terminal": False,
        "visits": 1,
        "value_sum": 0.5,
        "prior": None,
        "reward": None,
        "helpfulness": None,
        "safety": None,
        "rollouts": [{"text": "rest", "helpfulness": 0.5, "safety": 1.0, "reward": 0.5}],
        "tokens": 3,
    } | other


def tree(name: str = "p") -> dict[str, Any]:
    """A sound tree: two children of the root, one of them with a terminal and an unvisited child."""
    return {
        "tree_id": identity.tree_id(identity.prompt_id(name), 42),
        "prompt_id": identity.prompt_id(name),
        "prompt": name,
        "task": "safety",
        "actor": "actor",
        "round": 1,
        "nodes": [
            node(0, -1, 0, visits=4, value_sum=1.5),
            node(1, 0, 1, visits=2, value_sum=1.5),
            node(2, 0, 1, visits=1, value_sum=-0.5),
            node(3, 1, 2, is_terminal=True, reward=1.0, helpfulness=0.0, safety=0.5, value_sum=1.0, rollouts=[]),
            node(4, 1, 2, visits=0, value_sum=0.0, rollouts=[], tokens=None),
        ],
        "iterations": 4,
        "seed": 42,
        "requests": 7,
        "prompt_tokens": 70,
        "completion_tokens": 30,
        "seconds": 1.5,
        "judgements": [{"node_id": 1, "rollout": None, "aspect": "safety", "text": "It is safe.\nScore: 5"}],
    }


def pair(**other: Any) -> dict[str, Any]:
    return {
        "pair_id": "0123456789abcdef",
        "tree_id": "0123456789abcdef",
        **PROMPT,
        "round": None,
        "chosen": "préfix😀 good",
        "rejected": "préfix😀 bad",
        "prefix_length": 8,
        "depth": 2,
        "chosen_value": 0.9,
        "rejected_value": 0.2,
        "margin": 0.7,
        "chosen_visits": 4,
        "rejected_visits": 5,
        "chosen_is_terminal": False,
        "rejected_is_terminal": True,
        "chosen_node_id": 3,
        "rejected_node_id": 4,
        "granularity": "step",
    } | other


def response(**other: Any) -> dict[str, Any]:
    return {
        "response_id": "0123456789abcdef",
        **PROMPT,
        "method": "best_of_n",
        "model": "actor",
        "prm": None,
        "n": 2,
        "candidates": [
            {"text": "first", "score": 0.1, "is_complete": True, "tokens": 5},
            {"text": "second", "score": 0.9, "is_complete": False, "tokens": 6},
        ],
        "chosen_index": 1,
        "text": "second",
        "score": 0.9,
        "completion_tokens": 11,
        "step_scores": [[0.1], [0.2, 0.9]],
        "requests": 1,
        "prompt_tokens": 20,
        "prm_calls": 2,
        "prm_tokens": 51,
        "seconds": 0.5,
    } | other


def structured_cot(**other: Any) -> dict[str, Any]:
    return {
        **PROMPT,
        "steps": [{"title": "T:", "body": "b"}],
        "output": "o",
        "completion": "c",
        "teacher": None,
        "finish": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "alternatives": [{"completion": "", "teacher": "t", "score": None}],
        "thoughts": None,
    } | other


def review(**other: Any) -> dict[str, Any]:
    return {
        "item_kind": "preference_pairs",
        "item_id": "0123456789abcdef",
        "reviewer": "salted",
        "verdict": "both_bad",
        "safe": "neither",
        "comment": None,
        "spans": [{"side": "chosen", "start": 0, "end": 4}],
        "answers": "{}",
        "shown_first": "rejected",
        "guideline_version": "1",
        "submitted_at": datetime(2026, 1, 2, tzinfo=UTC),
    } | other


def evaluation(**other: Any) -> dict[str, Any]:
    return {
        "prompt_id": PROMPT["prompt_id"],
        "benchmark": "strongreject",
        "attack": "none",
        "response_id": "0123456789abcdef",
        "sample": 0,
        "attacked_prompt": None,
        "task": None,
        "model": "actor@01234567",
        "method": "sample",
        "response": "",
        "refused": True,
        "helpfulness": None,
        "safety": 1.0,
        "score": 0.5,
        "judge": "rule",
        "reads": "answer",
        "details": None,
    } | other


def prompt(**other: Any) -> dict[str, Any]:
    optional = ("category", "reference_answer", "reference_is_safe", "twin_of")
    return {**PROMPT, "source": "s", **dict.fromkeys(optional)} | other


SOUND: dict[str, Callable[..., dict[str, Any]]] = {
    "prompts": prompt,
    "structured_cot": structured_cot,
    "trees": tree,
    "preference_pairs": pair,
    "prm_pairs": pair,
    "responses": response,
    "evaluations": evaluation,
    "reviews": review,
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_are_the_designs(kind: str) -> None:
    assert in_design_notation(row_schema(kind).columns()) == " ".join(COLUMNS[kind].split())


def test_there_are_eight_kinds() -> None:
    assert list(KINDS) == list(COLUMNS)
    assert SCHEMA_VERSION == 1


@pytest.mark.parametrize("kind", KEYS)
def test_primary_keys(kind: str) -> None:
    assert sorted(row_schema(kind).primary_key()) == sorted(KEYS[kind])


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_column_is_described(kind: str) -> None:
    columns = row_schema(kind).columns()
    assert [name for name, column in columns.items() if not column.description] == []


@pytest.mark.parametrize("kind", COLUMNS)
def test_arrow_and_features_agree_with_polars(kind: str) -> None:
    frame = pl.from_arrow(arrow_schema(kind).empty_table())
    assert isinstance(frame, pl.DataFrame)
    assert frame.schema == polars_schema(kind)
    described: pa.Schema = features(kind).arrow_schema
    assert described.remove_metadata().equals(arrow_schema(kind))


@pytest.mark.parametrize("kind", COLUMNS)
def test_json_schema_says_what_the_columns_are(kind: str) -> None:
    document = json.loads(json.dumps(json_schema(kind), allow_nan=False))
    columns = row_schema(kind).columns()
    assert list(document["properties"]) == list(columns)
    nullable = {name for name, property in document["properties"].items() if _allows_null(property)}
    assert nullable == {name for name, column in columns.items() if column.nullable}
    assert document["x-stairdata-kind"] == kind
    assert document["x-stairdata-schema-version"] == 1


def _allows_null(property: dict[str, Any]) -> bool:
    return {"type": "null"} in property.get("anyOf", [])


@pytest.mark.parametrize("kind", COLUMNS)
def test_json_schema_names_the_rules(kind: str) -> None:
    rules = json_schema(kind)["x-stairdata-rules"]
    named = RULES.get(kind, set())
    assert named | {"primary_key"} == {rule for rule in rules if "|" not in rule}
    assert rules == sorted(rules)


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_sound_row_passes_and_comes_back(kind: str) -> None:
    row = SOUND[kind]()
    frame = pl.DataFrame([row], schema=polars_schema(kind))
    sound, failure = row_schema(kind).filter(frame)
    assert failure.counts() == {}
    assert sound.to_dicts() == [row]


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_null_is_refused_exactly_where_the_design_has_no_question_mark(kind: str) -> None:
    for name, column in row_schema(kind).columns().items():
        expected = set() if column.nullable else {f"{name}|nullability"}
        found = {rule for rule in broken_rules(kind, SOUND[kind]() | {name: None}) if "|" in rule}
        assert found == expected, name


@pytest.mark.parametrize("name", ["structured-cot", "structured_cot"])
def test_dash_and_underscore_are_equal(name: str) -> None:
    assert kind_name(name) == "structured_cot"
    assert row_schema(name) is KINDS["structured_cot"]


@pytest.mark.parametrize("name", ["", "tree", "Trees", "trees/", "../trees"])
def test_an_unknown_kind_is_a_wrong_usage_that_names_the_kinds(name: str) -> None:
    with pytest.raises(UsageError, match=r"use one of prompts, structured_cot, trees|did you mean 'trees'"):
        kind_name(name)


def _children_of_a_terminal_node(nodes: list[dict[str, Any]]) -> None:
    nodes[1]["is_terminal"] = True


def _set(index: int, **values: Any) -> Change:
    return lambda nodes: nodes[index].update(values)


BROKEN_TREES: list[tuple[str, Change]] = [
    ("parents_come_first", _set(2, parent_id=9)),  # orphan
    ("parents_come_first", _set(4, parent_id=4)),  # its own parent
    ("parents_come_first", _set(1, parent_id=3)),  # a cycle of 1 and 3
    ("parents_come_first", _set(2, parent_id=-1)),  # two roots
    ("node_ids_are_dense", _set(4, node_id=5)),
    ("node_ids_are_dense", _set(4, node_id=3)),
    ("node_ids_are_dense", lambda nodes: nodes.insert(1, nodes.pop(2))),
    ("first_node_is_the_root", _set(0, step="Hello")),
    ("first_node_is_the_root", _set(0, parent_id=0)),
    ("first_node_is_the_root", _set(0, depth=1)),
    ("depth_is_one_below_the_parent", _set(3, depth=1)),
    ("depth_is_one_below_the_parent", _set(3, depth=3)),
    ("terminal_nodes_have_no_children", _children_of_a_terminal_node),
    ("terminal_nodes_have_no_children", _set(0, is_terminal=True)),
    ("unvisited_nodes_have_no_value", _set(4, value_sum=0.5)),
    ("unvisited_nodes_have_no_value", _set(2, visits=0)),
    ("nodes|inner_inner_value_sum_nan", _set(2, value_sum=float("nan"))),
    ("nodes|inner_inner_value_sum_inf", _set(2, value_sum=float("-inf"))),
    ("nodes|inner_inner_reward_nan", _set(3, reward=float("nan"))),
    ("nodes|inner_inner_visits_min", _set(2, visits=-1)),
    ("nodes|inner_inner_depth_min", _set(0, depth=-1)),
    ("nodes|inner_inner_parent_id_min", _set(1, parent_id=-2)),
    ("nodes|inner_inner_tokens_min", _set(1, tokens=-1)),
    ("nodes|inner_inner_parent_id_nullability", _set(1, parent_id=None)),
    ("nodes|inner_inner_step_nullability", _set(1, step=None)),
    ("nodes|inner_inner_visits_nullability", _set(1, visits=None)),
    ("nodes|inner_inner_rollouts_nullability", _set(1, rollouts=None)),
    ("nodes|inner_inner_rollouts_inner_inner_reward_nan", _set(1, rollouts=[{"text": "", "reward": float("nan")}])),
    ("nodes|inner_inner_rollouts_inner_inner_text_nullability", _set(1, rollouts=[{"text": None, "reward": 1.0}])),
    ("nodes|min_length", lambda nodes: nodes.clear()),
]


@pytest.mark.parametrize(("rule", "change"), BROKEN_TREES)
def test_a_broken_tree_is_refused_by_name(rule: str, change: Change) -> None:
    broken = tree()
    change(broken["nodes"])
    assert rule in broken_rules("trees", broken)


def test_every_rule_of_trees_has_a_tree_that_breaks_it() -> None:
    assert {rule for rule, _ in BROKEN_TREES if "|" not in rule} == RULES["trees"]


@pytest.mark.slow
@given(st.lists(st.sampled_from([None, *BROKEN_TREES]), min_size=1, max_size=6))
@settings(max_examples=30)
def test_each_tree_is_judged_by_itself(changes: list[tuple[str, Change] | None]) -> None:
    rows = [tree(str(number)) for number in range(len(changes))]
    for row, change in zip(rows, changes, strict=True):
        if change is not None:
            change[1](row["nodes"])
    frame = pl.DataFrame(rows, schema=polars_schema("trees"))
    sound = row_schema("trees").filter(frame).result
    assert sound["prompt"].to_list() == [str(number) for number, change in enumerate(changes) if change is None]


def test_a_tree_of_its_root_alone_is_sound() -> None:
    assert broken_rules("trees", tree() | {"nodes": [node(0, -1, 0)]}) == set()


@given(st.data())
@settings(max_examples=30)
def test_any_tree_with_parents_first_is_sound(data: st.DataObject) -> None:
    nodes = [node(0, -1, 0)]
    for node_id in range(1, data.draw(st.integers(1, 12))):
        parent = data.draw(st.integers(0, node_id - 1))
        nodes.append(node(node_id, parent, nodes[parent]["depth"] + 1))
    leaves = {each["node_id"] for each in nodes} - {each["parent_id"] for each in nodes}
    for leaf in leaves:
        nodes[leaf]["is_terminal"] = data.draw(st.booleans())
    assert broken_rules("trees", tree() | {"nodes": nodes}) == set()


@pytest.mark.parametrize("kind", ["preference_pairs", "prm_pairs"])
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("prefix_is_shared", {"prefix_length": 9, "chosen": "préfix😀Xgood"}),
        ("prefix_is_shared", {"rejected": "Préfix😀 bad"}),
        ("chosen_differs_from_rejected", {"rejected": "préfix😀 good"}),
        ("steps_follow_the_prefix", {"chosen": "préfix😀"}),
        ("steps_follow_the_prefix", {"rejected": "préfix😀"}),
        ("steps_follow_the_prefix", {"prefix_length": 99}),
        ("margin_is_the_difference", {"margin": 0.6}),
        ("margin_is_the_difference", {"margin": 0.70001}),
        ("margin_is_not_zero", {"margin": 0.0, "rejected_value": 0.9}),
        ("margin|nan", {"margin": float("nan")}),
        ("chosen_value|inf", {"chosen_value": float("inf"), "margin": float("inf")}),
        ("chosen|regex", {"chosen": "", "prefix_length": 0}),
        ("prefix_length|min", {"prefix_length": -1}),
        ("chosen_node_id|min", {"chosen_node_id": 0}),
        ("rejected_visits|min", {"rejected_visits": -1}),
        ("granularity|regex", {"granularity": "steps"}),
        ("granularity|regex", {"granularity": "step\n"}),
        ("task|regex", {"task": "Safety"}),
        ("pair_id|regex", {"pair_id": "0123456789ABCDEF"}),
        ("pair_id|regex", {"pair_id": "0123456789abcde"}),
        ("pair_id|regex", {"pair_id": "0123456789abcdef\n"}),
        ("prompt|regex", {"prompt": " \n\u3000"}),
    ],
)
def test_a_broken_pair_is_refused_by_name(kind: str, rule: str, change: dict[str, Any]) -> None:
    assert rule in broken_rules(kind, pair(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"prefix_length": 0},
        {"prefix_length": 0, "chosen": "a", "rejected": "b"},
        {"margin": 0.7000005},  # rounding is no error
        {"task": None, "round": None},
        {"chosen_visits": 0, "rejected_visits": 0},
        {"granularity": "trajectory"},
        {"chosen": "préfix😀 bad and more"},  # one side may go on where the other ends
    ],
)
def test_a_sound_pair_passes(change: dict[str, Any]) -> None:
    assert broken_rules("preference_pairs", pair(**change)) == set()


def test_only_reviewers_prefer_the_side_of_lower_value_and_only_in_preference_pairs() -> None:
    turned = pair(margin=-0.1, rejected_value=1.0)
    assert broken_rules("preference_pairs", turned) == set()
    assert broken_rules("prm_pairs", turned) == {"margin_is_positive"}


def test_a_prefix_is_counted_in_code_points() -> None:
    assert len("préfix😀 ") == 8
    assert broken_rules("preference_pairs", pair(prefix_length=8)) == set()
    assert broken_rules("preference_pairs", pair(prefix_length=9)) == {"prefix_is_shared"}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("text_is_the_chosen_candidate", {"text": "first"}),
        ("text_is_the_chosen_candidate", {"chosen_index": 0}),
        ("text_is_the_chosen_candidate", {"chosen_index": 2}),
        ("step_scores_are_of_the_candidates", {"step_scores": [[0.9]]}),
        ("chosen_index|min", {"chosen_index": -1}),
        ("candidates|min_length", {"candidates": []}),
        ("n|min", {"n": 0}),
        ("method|regex", {"method": "best-of-n"}),
        ("score|nan", {"score": float("nan")}),
        (
            "candidates|inner_inner_text_nullability",
            {"candidates": [{"text": None, "score": 0.0, "is_complete": True, "tokens": 1}]},
        ),
    ],
)
def test_a_broken_response_is_refused_by_name(rule: str, change: dict[str, Any]) -> None:
    assert rule in broken_rules("responses", response(**change))


@pytest.mark.parametrize(
    ("kind", "rule", "change"),
    [
        ("prompts", "task|regex", {"task": "chatter"}),
        ("prompts", "source|regex", {"source": " "}),
        ("prompts", "prompt_id|regex", {"prompt_id": "xyz"}),
        ("structured_cot", "steps|min_length", {"steps": []}),
        ("structured_cot", "steps|inner_inner_title_regex", {"steps": [{"title": " ", "body": "b"}]}),
        ("structured_cot", "steps|inner_inner_body_regex", {"steps": [{"title": "T:", "body": "\n"}]}),
        ("structured_cot", "output|regex", {"output": ""}),
        ("evaluations", "safety|max", {"safety": 1.5}),
        ("evaluations", "helpfulness|min", {"helpfulness": -1.01}),
        ("prompts", "twin_of|regex", {"twin_of": "xyz"}),
        ("prompts", "a_twin_is_of_another_prompt", {"twin_of": PROMPT["prompt_id"]}),
        ("evaluations", "score|max", {"score": 1.01}),
        ("evaluations", "score|min", {"score": -0.01}),
        ("evaluations", "reads|regex", {"reads": "reasoning"}),
        ("evaluations", "attack|nullability", {"attack": None}),
        ("evaluations", "attack|regex", {"attack": " "}),
        ("evaluations", "judge|nullability", {"judge": None}),
        ("evaluations", "response_id|regex", {"response_id": "xyz"}),
        ("reviews", "verdict|regex", {"verdict": "chosen!"}),
        ("reviews", "safe|regex", {"safe": "tie"}),
        ("reviews", "shown_first|regex", {"shown_first": "both"}),
        ("reviews", "spans|inner_inner_side_regex", {"spans": [{"side": "prompt", "start": 0, "end": 1}]}),
        ("reviews", "spans|inner_inner_start_min", {"spans": [{"side": "chosen", "start": -1, "end": 1}]}),
    ],
)
def test_a_broken_row_is_refused_by_name(kind: str, rule: str, change: dict[str, Any]) -> None:
    assert broken_rules(kind, SOUND[kind]() | change) == {rule}


def test_a_rating_that_is_no_number_is_refused_by_name() -> None:
    assert "safety|nan" in broken_rules("evaluations", evaluation(safety=float("nan")))


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_key_twice_is_refused(kind: str) -> None:
    assert broken_rules(kind, SOUND[kind](), SOUND[kind]()) == {"primary_key"}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("evaluations", {"model": "other"}),
        ("evaluations", {"benchmark": "other"}),
        ("evaluations", {"attack": "base64"}),
        ("evaluations", {"response_id": "fedcba9876543210"}),
        ("evaluations", {"sample": 1}),
        ("evaluations", {"judge": "guard"}),
        ("evaluations", {"reads": "whole"}),
        ("reviews", {"reviewer": "other"}),
        ("reviews", {"item_kind": "trees"}),
    ],
)
def test_a_key_of_several_columns_is_the_same_only_if_all_are(kind: str, change: dict[str, Any]) -> None:
    assert broken_rules(kind, SOUND[kind](), SOUND[kind]() | change) == set()
