"""Row schemas of the eight artifact kinds, version 1.

One dataframely class a kind is the single source: validation and quarantine rules, the Arrow schema of the
files, the `datasets.Features`, the JSON Schema and the column table of the dataset card all come from it.
A column with `?` in the design is nullable here. Every rule has a name, because quarantined rows are counted
by it.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import dataframely as dy
import polars as pl
import pyarrow as pa

from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import UsageError, quote, suggest
from stairdata_schemas.text.visible import VISIBLE

SCHEMA_VERSION = 1
TASKS = ("safety", "helpfulness")
GRANULARITIES = ("step", "trajectory")
METHODS = ("sample", "best_of_n", "beam")
READS = ("answer", "whole")
VERDICTS = ("chosen", "rejected", "tie", "both_bad")
SIDES = ("chosen", "rejected")
SAFE_SIDES = ("chosen", "rejected", "both", "neither")
VALUE_TOLERANCE = 1e-6
LATER_COLUMNS = {
    "prompts": ("twin_of",),
    "structured_cot": ("thoughts",),
    "trees": ("judgements",),
    "responses": ("step_scores", "requests", "prompt_tokens", "prm_calls", "prm_tokens", "seconds"),
}
"""Nullable columns that version 1 began without: files that lack them are read as null there."""

_ID = r"^[0-9a-f]{16}$"


# The value rules are regular expressions, so that JSON Schema and `Schema.sample` know them too.
def _one_of(values: tuple[str, ...], *, nullable: bool, description: str) -> dy.String:
    return dy.String(nullable=nullable, regex=rf"^({'|'.join(values)})$", description=description)


def _not_blank(description: str) -> dy.String:
    return dy.String(regex=VISIBLE, description=description)


def _id(description: str, *, primary_key: bool = False, nullable: bool = False) -> dy.String:
    return dy.String(regex=_ID, primary_key=primary_key, nullable=nullable, description=description)


def _count(description: str, *, nullable: bool = False) -> dy.Int64:
    return dy.Int64(nullable=nullable, min=0, description=description)


def _task(*, nullable: bool = True) -> dy.String:
    return _one_of(TASKS, nullable=nullable, description="safety or helpfulness")


_PROMPT = "one user turn: plain text, no template, no system message"
_PROMPT_ID = "first 16 hex digits of sha256 of the NFC form of the prompt"


class Prompts(dy.Schema):
    prompt_id = _id(_PROMPT_ID, primary_key=True)
    prompt = _not_blank(_PROMPT)
    task = _task(nullable=False)
    source = _not_blank("where the prompt comes from: a file name, a Hub dataset id or a collection's name")
    category = dy.String(nullable=True, description="the source's own category")
    reference_answer = dy.String(nullable=True, description="an answer given by the source")
    reference_is_safe = dy.Bool(nullable=True, description="whether the source calls its answer safe")
    twin_of = _id("of a harmless twin: prompt_id of the prompt whose form it has", nullable=True)

    @dy.rule()
    def a_twin_is_of_another_prompt(cls) -> pl.Expr:
        return pl.col("twin_of").is_null() | (pl.col("twin_of") != pl.col("prompt_id"))


class StructuredCot(dy.Schema):
    prompt_id = _id(_PROMPT_ID, primary_key=True)
    prompt = _not_blank(_PROMPT)
    task = _task(nullable=False)
    steps = dy.List(
        dy.Struct(
            {
                "title": _not_blank("the step's title, its colon included"),
                "body": _not_blank("the step's text"),
            }
        ),
        min_length=1,
        description="the reasoning steps, in order",
    )
    output = _not_blank("the final answer")
    # a prompt may have several answers, but no answer twice
    completion = dy.String(
        primary_key=True, regex=VISIBLE, description="steps and output in the step grammar, tags included"
    )
    teacher = dy.String(nullable=True, description="who wrote the row")
    finish = dy.String(nullable=True, description="how the teacher's generation ended")
    prompt_tokens = _count("tokens sent to the teacher", nullable=True)
    completion_tokens = _count("tokens received from the teacher", nullable=True)
    alternatives = dy.List(
        dy.Struct(
            {
                "completion": dy.String(description="a completion that was not kept"),
                "teacher": dy.String(description="who wrote it"),
                "score": dy.Float64(nullable=True, description="the judge's score"),
            }
        ),
        nullable=True,
        description="candidates of other teachers",
    )
    thoughts = dy.String(
        nullable=True, description="what the teacher thought before the answer, if teacher.keep_reasoning is set"
    )


_NODE = pl.element().struct


def _each_node(condition: pl.Expr) -> pl.Expr:
    return pl.col("nodes").list.eval(condition).list.all()


class Trees(dy.Schema):
    tree_id = _id("hash over prompt_id, seed and ordinal", primary_key=True)
    prompt_id = _id(_PROMPT_ID)
    prompt = _not_blank(_PROMPT)
    task = _task()
    actor = dy.String(nullable=True, description="the model that wrote the steps")
    round = _count("round of trees, pairs and DPO, from 1", nullable=True)
    nodes = dy.List(
        dy.Struct(
            {
                "node_id": dy.Int32(min=0, description="dense, parents first; the root is 0"),
                "parent_id": dy.Int32(min=-1, description="-1 at the root"),
                "depth": dy.Int32(min=0, description="0 at the root"),
                "step": dy.String(description="the step byte for byte, without end-of-turn text; empty at the root"),
                "is_terminal": dy.Bool(description="the step ends the answer"),
                "visits": dy.Int32(min=0, description="evaluations of the node and of all below it"),
                "value_sum": dy.Float64(description="sum of the rewards of those evaluations"),
                "prior": dy.Float64(nullable=True, description="PUCB prior"),
                "reward": dy.Float64(nullable=True, description="reward of a terminal node, computed once"),
                "helpfulness": dy.Float64(nullable=True, description="H of a terminal node, -1 to 1"),
                "safety": dy.Float64(nullable=True, description="S of a terminal node, -1 to 1"),
                "rollouts": dy.List(
                    dy.Struct(
                        {
                            "text": dy.String(description="the text after the node"),
                            "helpfulness": dy.Float64(nullable=True, description="H of the answer, -1 to 1"),
                            "safety": dy.Float64(nullable=True, description="S of the answer, -1 to 1"),
                            "reward": dy.Float64(description="reward of the answer"),
                        }
                    ),
                    description="one entry per evaluation of a non-terminal node",
                ),
                "tokens": dy.Int32(
                    nullable=True,
                    min=0,
                    description="tokens of this step alone; of the rendered prompt at the root",
                ),
            }
        ),
        min_length=1,
        description="the nodes, ordered by node_id",
    )
    iterations = _count("iterations of the search", nullable=True)
    seed = dy.Int64(nullable=True, description="seed of the search")
    requests = _count("requests sent for this tree, judges included", nullable=True)
    prompt_tokens = _count("prompt tokens of those requests", nullable=True)
    completion_tokens = _count("completion tokens of those requests", nullable=True)
    seconds = dy.Float64(nullable=True, min=0, description="wall time the tree was in flight")
    judgements = dy.List(
        dy.Struct(
            {
                "node_id": dy.Int32(min=0, description="the node whose answer was judged"),
                "rollout": dy.Int32(
                    nullable=True,
                    min=0,
                    description="index among the node's rollouts; null for a terminal node's reward",
                ),
                "aspect": _one_of(TASKS, nullable=False, description="helpfulness or safety"),
                "text": dy.String(description="what the judge wrote"),
            }
        ),
        nullable=True,
        description="what the judge wrote, if judge.keep_text is set",
    )

    @dy.rule()
    def node_ids_are_dense(cls) -> pl.Expr:
        return _each_node(_NODE.field("node_id") == pl.int_range(pl.len()))

    @dy.rule()
    def first_node_is_the_root(cls) -> pl.Expr:
        root = pl.col("nodes").list.first().struct
        return (root.field("parent_id") == -1) & (root.field("depth") == 0) & (root.field("step") == "")

    @dy.rule()
    def parents_come_first(cls) -> pl.Expr:
        """Every node but the first has a parent before it: no orphan, no cycle, one root."""
        parent, node = _NODE.field("parent_id"), pl.int_range(pl.len())
        return _each_node((parent < node) & ((parent >= 0) | (node == 0)))

    @dy.rule()
    def depth_is_one_below_the_parent(cls) -> pl.Expr:
        depth = _NODE.field("depth")
        of_parent = depth.gather(_NODE.field("parent_id").clip(0), null_on_oob=True)
        return _each_node((depth == of_parent + 1) | (pl.int_range(pl.len()) == 0))

    @dy.rule()
    def terminal_nodes_have_no_children(cls) -> pl.Expr:
        terminal, parent = _NODE.field("is_terminal"), _NODE.field("parent_id")
        return ~pl.col("nodes").list.eval(terminal.gather(parent.slice(1).clip(0), null_on_oob=True)).list.any()

    @dy.rule()
    def unvisited_nodes_have_no_value(cls) -> pl.Expr:
        return _each_node((_NODE.field("visits") > 0) | (_NODE.field("value_sum") == 0.0))


class PreferencePairs(dy.Schema):
    pair_id = _id("hash over tree_id, both node ids and granularity", primary_key=True)
    tree_id = _id("the tree the pair was taken from")
    prompt_id = _id(_PROMPT_ID)
    prompt = _not_blank(_PROMPT)
    task = _task()
    round = _count("round of trees, pairs and DPO, from 1", nullable=True)
    chosen = _not_blank("assistant text from its start up to and including the better step")
    rejected = _not_blank("the same for the worse step")
    prefix_length = _count("length of the shared prefix, in Unicode code points")
    depth = _count("depth of the chosen node")
    chosen_value = dy.Float64(description="V of the chosen node")
    rejected_value = dy.Float64(description="V of the rejected node")
    margin = dy.Float64(description="chosen_value - rejected_value; below zero if reviewers flipped the pair")
    chosen_visits = _count("visits of the chosen node")
    rejected_visits = _count("visits of the rejected node")
    chosen_is_terminal = dy.Bool(description="the chosen step ends the answer: end-of-turn belongs after it")
    rejected_is_terminal = dy.Bool(description="the same for the rejected step")
    chosen_node_id = dy.Int32(
        min=1, description="node_id of the chosen node in its tree; numbered on, a step of a rollout"
    )
    rejected_node_id = dy.Int32(
        min=1, description="node_id of the rejected node in its tree; numbered on, a step of a rollout"
    )
    granularity = _one_of(GRANULARITIES, nullable=False, description="step or trajectory")

    @dy.rule()
    def chosen_differs_from_rejected(cls) -> pl.Expr:
        return pl.col("chosen") != pl.col("rejected")

    @dy.rule()
    def prefix_is_shared(cls) -> pl.Expr:
        length = pl.col("prefix_length").clip(0)  # polars raises on a negative length; its own rule refuses it
        return pl.col("chosen").str.slice(0, length) == pl.col("rejected").str.slice(0, length)

    @dy.rule()
    def steps_follow_the_prefix(cls) -> pl.Expr:
        length = pl.col("prefix_length")
        return (pl.col("chosen").str.len_chars() > length) & (pl.col("rejected").str.len_chars() > length)

    @dy.rule()
    def margin_is_the_difference(cls) -> pl.Expr:
        difference = pl.col("chosen_value") - pl.col("rejected_value")
        return (pl.col("margin") - difference).abs() <= VALUE_TOLERANCE

    @dy.rule()
    def margin_is_not_zero(cls) -> pl.Expr:
        """Below zero the values prefer the rejected side: reviewers overruled them."""
        return pl.col("margin") != 0


class PrmPairs(PreferencePairs):
    """The same columns; chosen and rejected may stand under different parents, and the values always decide."""

    @dy.rule()
    def margin_is_positive(cls) -> pl.Expr:
        return pl.col("margin") > 0


class Responses(dy.Schema):
    response_id = _id("hash over prompt_id, models and their revisions, settings and seed", primary_key=True)
    prompt_id = _id(_PROMPT_ID)
    prompt = _not_blank(_PROMPT)
    task = _task()
    method = _one_of(METHODS, nullable=False, description="sample, best_of_n or beam")
    model = _not_blank("the model that answered")
    prm = dy.String(nullable=True, description="the process reward model that scored")
    n = dy.Int32(min=1, description="candidates asked for; the width of a beam search")
    candidates = dy.List(
        dy.Struct(
            {
                "text": dy.String(description="the answer, without end-of-turn text"),
                "score": dy.Float64(nullable=True, description="reward given by the PRM"),
                "is_complete": dy.Bool(description="the answer ended by itself, not at the token limit"),
                "tokens": dy.Int32(min=0, description="completion tokens"),
            }
        ),
        min_length=1,
        description="all candidates, in the order they were sampled",
    )
    chosen_index = dy.Int32(min=0, description="index of the chosen candidate")
    text = dy.String(description="the chosen candidate's text")
    score = dy.Float64(nullable=True, description="the chosen candidate's score")
    completion_tokens = _count("completion tokens of all candidates, and of what a search dropped")
    step_scores = dy.List(
        dy.List(dy.Float64(description="the PRM's reward of the answer up to and including a step")),
        nullable=True,
        description="for each candidate, in their order, the scores behind its steps; the last is its score",
    )
    requests = _count("requests sent for this response, without those to the PRM", nullable=True)
    prompt_tokens = _count("prompt tokens of those requests", nullable=True)
    prm_calls = _count("texts that the PRM read", nullable=True)
    prm_tokens = _count("tokens of those texts", nullable=True)
    seconds = dy.Float64(nullable=True, min=0, description="wall time the response was in flight")

    @dy.rule()
    def text_is_the_chosen_candidate(cls) -> pl.Expr:
        chosen = pl.col("candidates").list.get(pl.col("chosen_index"), null_on_oob=True)
        return (chosen.struct.field("text") == pl.col("text")).fill_null(value=False)

    @dy.rule()
    def step_scores_are_of_the_candidates(cls) -> pl.Expr:
        scored = pl.col("step_scores")
        return scored.is_null() | (scored.list.len() == pl.col("candidates").list.len())


class Evaluations(dy.Schema):
    prompt_id = dy.String(regex=_ID, primary_key=True, description="of the prompt before the attack")
    benchmark = dy.String(primary_key=True, regex=VISIBLE, description="the benchmark's name")
    attack = dy.String(primary_key=True, regex=VISIBLE, description="the jailbreak applied to the prompt, or none")
    response_id = _id("the response that the answer belongs to", primary_key=True)
    # `sample` is a method of every schema
    sample_number = dy.Int32(
        alias="sample", primary_key=True, min=0, description="which of the response's answers, from 0"
    )
    attacked_prompt = dy.String(nullable=True, description="what the model was asked, where an attack changed it")
    task = _task()
    model = dy.String(
        primary_key=True, regex=VISIBLE, description="the model that answered: its name, @, 8 digits of its hash"
    )
    method = _one_of(METHODS, nullable=False, description="sample, best_of_n or beam")
    response = dy.String(description="the whole answer, its reasoning included")
    refused = dy.Bool(nullable=True, description="the answer is a refusal; null where it is not known")
    helpfulness = dy.Float64(nullable=True, min=-1, max=1, description="the judge's helpfulness, -1 to 1")
    safety = dy.Float64(nullable=True, min=-1, max=1, description="the judge's safety, -1 to 1")
    score = dy.Float64(nullable=True, min=0, max=1, description="the benchmark's own score, 0 to 1; higher is better")
    judge = dy.String(primary_key=True, regex=VISIBLE, description="who judged, and by which words")
    reads = dy.String(
        primary_key=True,
        regex=f"^({'|'.join(READS)})$",
        description="what was judged: the final answer, or the whole with its reasoning",
    )
    details = dy.String(
        nullable=True, description="JSON: the benchmark's label, the judge's answers, and why nothing is known"
    )


class Reviews(dy.Schema):
    item_kind = dy.String(primary_key=True, description="kind of the artifact the item comes from")
    item_id = dy.String(primary_key=True, description="pair_id, tree_id or prompt_id of the item")
    reviewer = dy.String(primary_key=True, description="salted hash of the reviewer")
    verdict = _one_of(VERDICTS, nullable=True, description="which side is better")
    safe = _one_of(SAFE_SIDES, nullable=True, description="which sides are safe")
    comment = dy.String(nullable=True, description="the reviewer's words")
    spans = dy.List(
        dy.Struct(
            {
                "side": _one_of(SIDES, nullable=False, description="which text"),
                "start": dy.Int32(min=0, description="first code point, in the whole text of that side"),
                "end": dy.Int32(min=0, description="code point after the last"),
            }
        ),
        nullable=True,
        description="marked parts",
    )
    answers = dy.String(nullable=True, description="JSON of the answers to questions of other kinds")
    shown_first = _one_of(SIDES, nullable=True, description="the side the reviewer saw first")
    guideline_version = dy.String(description="version of the guidelines the reviewer read")
    submitted_at = dy.Datetime(time_unit="us", time_zone="UTC", description="when the answer was submitted")


KINDS: dict[str, type[dy.Schema]] = {
    "prompts": Prompts,
    "structured_cot": StructuredCot,
    "trees": Trees,
    "preference_pairs": PreferencePairs,
    "prm_pairs": PrmPairs,
    "responses": Responses,
    "evaluations": Evaluations,
    "reviews": Reviews,
}


def kind_name(name: str) -> str:
    """Return the canonical name of a kind; dash and underscore are equal.

    Raises:
        UsageError: no such kind.
    """
    kind = name.replace("-", "_")
    if kind not in KINDS:
        raise UsageError(f"unknown kind {quote(name)}; {suggest(kind, KINDS)}")
    return kind


def row_schema(kind: str) -> type[dy.Schema]:
    return KINDS[kind_name(kind)]


def polars_schema(kind: str) -> pl.Schema:
    """Return the column types of a kind as polars sees them."""
    return pl.Schema({name: column.dtype for name, column in row_schema(kind).columns().items()})


def arrow_schema(kind: str) -> pa.Schema:
    """Return the Arrow schema in which a kind's files are written (large strings and lists)."""
    return pl.DataFrame(schema=polars_schema(kind)).to_arrow().schema


def features(kind: str) -> Any:
    """Return the `datasets.Features` of a kind."""
    from datasets import Features

    return Features.from_arrow_schema(arrow_schema(kind))


def json_schema(kind: str) -> Json:
    """Return the JSON Schema of one row of a kind; rules over several columns are named, not expressed."""
    schema = row_schema(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rules JSON Schema can't say are listed below instead
        document: Json = schema.to_pydantic_model(kind).model_json_schema()
    # its regular expressions are JavaScript's, which writes the ranges of VISIBLE in another way
    document = json.loads(json.dumps(document).replace(json.dumps(VISIBLE), json.dumps(r"\S")))
    document["x-stairdata-kind"] = kind_name(kind)
    document["x-stairdata-schema-version"] = SCHEMA_VERSION
    document["x-stairdata-rules"] = sorted(schema._validation_rules(with_cast=False))
    return document
