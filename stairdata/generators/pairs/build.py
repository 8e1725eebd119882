"""Kinds `preference_pairs` and `prm_pairs`: pairs of nodes out of trees, by the rules of design section 6.

Shards are read in pieces of about 32,000 nodes; in each piece nodes are joined with nodes by number alone, and only
pairs that are kept get their texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

from stairdata.generators.pairs.forest import (
    Forest,
    common_ancestors,
    lacks_tokens,
    path_sums,
    path_texts,
    sound_frames,
    unfold,
)
from stairdata.generators.pairs.label_noise import MORE_VISITS, LabelNoise, noise_note
from stairdata.generators.pairs.length_limit import LengthLimit, tokenizer_identity, tokenizer_of
from stairdata.generators.pairs.pairing_rules import any_answers, comparable_nodes, good_and_bad_answers, siblings
from stairdata.generators.pairs.review_decisions import DECISIONS, apply_reviews, notes_on, read_verdicts, turned_ids
from stairdata.generators.pairs.selection import across_trees, in_part, inside_trees
from stairdata.hub.pull import open_reference
from stairdata.recipe import PairsSection, PreferencePairsSection, PrmPairsSection, Recipe
from stairdata.runs.build import build_as_told
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.errors import BuildError
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.quarantine import QuarantineRow

AnyPairsSection = PreferencePairsSection | PrmPairsSection
_GENERATORS = {"preference_pairs": "preference_pairs/4", "prm_pairs": "prm_pairs/4"}
NOISY = 0.75
"""A smaller share of pairs in the order of true values is worth a warning."""
_TREE = ["tree_id", "prompt_id", "prompt", "task", "round"]


def build_preference_pairs(recipe: Recipe, options: BuildOptions, reviews: str | None = None) -> Artifact:
    """Take pairs for DPO: siblings far enough apart in value, or whole answers.

    Args:
        recipe: section `preference_pairs`.
        options: where and from what.
        reviews: reference of the reviews that decide which pairs train.

    Raises:
        NoPairsError: not one pair; says how many candidates each rule removed.
        BuildError: a path that only a tokenizer can measure.
    """
    return _build("preference_pairs", recipe.preference_pairs, recipe, options, reviews)


def build_prm_pairs(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Take pairs for the PRM: nodes of equal depth anywhere in a tree, and whole answers.

    Raises:
        NoPairsError, BuildError: as for preference pairs.
    """
    return _build("prm_pairs", recipe.prm_pairs, recipe, options)


def _build(
    kind: str, section: AnyPairsSection, recipe: Recipe, options: BuildOptions, reviewed: str | None = None
) -> Artifact:
    trees = Inputs(options.inputs, options.root).of("trees")
    has_no_tokens = section.rollouts or lacks_tokens(trees)
    tokenizer = tokenizer_of(section.tokenizer, recipe) if has_no_tokens else None
    reviews = open_reference(reviewed, options.root) if reviewed else None
    settings = counted_settings(section)
    if reviews is not None and isinstance(section, PreferencePairsSection):
        settings["reviews"] = counted_settings(section.reviews)
    plan = BuildPlan(
        kind,
        _GENERATORS[kind],
        {**settings, "seed": recipe.seed, "limit": options.limit},
        settings={"tokenizer": tokenizer},
        parents=[artifact.as_parent() for artifact in (trees, reviews) if artifact],
        models=[tokenizer_identity(tokenizer)] if tokenizer else [],
        seeds={"sampling": recipe.seed},
    )

    def content(build: Build) -> BuildContent:
        taker = _PairExtractor(
            kind, section, recipe.seed, LengthLimit(section.max_tokens, tokenizer, f"{kind}.tokenizer")
        )
        verdicts = read_verdicts(reviews, trees) if reviews else None
        refused: list[QuarantineRow] = []
        taken = taker.reviewed(taker.frames(trees, options, refused), verdicts)
        report = Report()
        chosen = across_trees(taken, section, recipe.seed, build.work, taker.funnel)
        frames = taker.counted(chosen, report, options.tell)
        first = next(frames, None)
        if first is None:
            raise NoPairsError(_no_pairs(kind, trees, section, taker.funnel, refused))
        taker.fill(report, trees.manifest.actor)
        report.notes += notes_on(reviews, trees) if reviews else []
        return BuildContent(chain([first], frames), refused, report)

    return build_as_told(plan, content, options)


class NoPairsError(BuildError):
    """Trees that have not one pair by the rules."""


class _PairExtractor:
    """Takes pairs out of an artifact of trees, and counts what it takes and leaves."""

    def __init__(self, kind: str, section: AnyPairsSection, seed: int, length_limit: LengthLimit) -> None:
        self.kind = kind
        self.section = section
        self.seed = seed
        self.length_limit = length_limit
        self.funnel: Counter[str] = Counter()
        self.mixture: dict[str, Counter[str]] = {}
        self.decisions: Counter[str] = Counter()
        self.noise = LabelNoise()

    def frames(self, trees: Artifact, options: BuildOptions, refused: list[QuarantineRow]) -> Iterator[pl.DataFrame]:
        """Yield frames of pairs, not one of them empty."""
        for frame in sound_frames(trees, self.kind, options, refused, rollouts=self.section.rollouts):
            self.noise.add_trees(unfold(frame))
            pairs = pairs_of(self.kind, frame, self.section, self.funnel, self.seed, self.length_limit)
            if not pairs.is_empty():
                yield pairs

    def reviewed(self, frames: Iterator[pl.DataFrame], verdicts: pl.DataFrame | None) -> Iterator[pl.DataFrame]:
        """Let reviewers decide, where there are verdicts."""
        if verdicts is None or not isinstance(self.section, PreferencePairsSection):
            yield from frames
            return
        self.decisions.update(dict.fromkeys((*DECISIONS, "flipped", "dropped", "reviewed_but_no_pair"), 0))
        unmet = set(verdicts["pair_id"])
        for frame in frames:
            unmet -= {*frame["pair_id"], *turned_ids(frame)}
            kept = apply_reviews(frame, verdicts, self.section.reviews, self.decisions)
            self.funnel["removed_by_reviewers"] += len(frame) - len(kept)
            if not kept.is_empty():
                yield kept
        self.decisions["reviewed_but_no_pair"] = len(unmet)

    def counted(
        self, frames: Iterator[pl.DataFrame], report: Report, tell: Callable[[str], None]
    ) -> Iterator[pl.DataFrame]:
        """Count what is in the frames that pass, and after the last one say how far their order can be trusted."""
        for frame in frames:
            self.funnel["pairs"] += len(frame)
            self.noise.add_pairs(frame)
            for name, values in _mixture(frame).items():
                self.mixture.setdefault(name, Counter()).update(values)
            yield frame
        report.details["label_noise"] = self.noise.as_json()
        share = self.noise.share_in_order()
        if share is not None and share.value < 1:  # the reward of a whole answer is its value
            report.notes.append(note := noise_note(share))
            if share.value < NOISY:
                tell(f"warning: {note}; {MORE_VISITS}")

    def fill(self, report: Report, actor: ModelIdentity | None) -> None:
        """Set what the manifest keeps; counters fill up while frames pass."""
        report.details |= {"funnel": self.funnel, "mixture": self.mixture}
        if actor is not None:
            report.details["actor"] = actor.noted()
        if self.decisions:
            report.details["reviews"] = self.decisions
        report.notes += _notes(self.section, flipped=self.decisions["flipped"])


def _notes(section: PairsSection, *, flipped: int) -> list[str]:
    notes = []
    if flipped:
        notes.append(f"{flipped} pairs were flipped by reviewers: their margin is below zero")
    if section.hold_out:
        what = "held out for evaluation" if section.part == "held_out" else "to train on"
        notes.append(f"prompts {what}; hold_out sets {section.hold_out:.1%} of the prompts aside")
    return notes


def _mixture(pairs: pl.DataFrame) -> dict[str, dict[str, int]]:
    ends = pl.concat_str(
        pl.when(pl.col(f"{side}_is_terminal")).then(pl.lit("terminal")).otherwise(pl.lit("partial"))
        for side in ("chosen", "rejected")
    )
    columns = {
        "granularity": pl.col("granularity"),
        "depth": pl.col("depth").cast(pl.String),
        "task": pl.col("task").fill_null("unknown"),
        "chosen_rejected": ends.str.replace("(terminal|partial)", "${1}-"),
    }
    counts = {name: pairs.select(value=column)["value"].value_counts(sort=True) for name, column in columns.items()}
    return {name: dict(frame.sort("value").iter_rows()) for name, frame in counts.items()}


def pairs_of(
    kind: str,
    trees: pl.DataFrame,
    section: AnyPairsSection,
    funnel: Counter[str],
    seed: int = 42,
    length_limit: LengthLimit | None = None,
) -> pl.DataFrame:
    """Return all pairs of a frame of sound trees, in an order that depends on the trees alone.

    Args:
        kind: preference_pairs or prm_pairs.
        trees: rows of kind `trees`, or the columns of them that `read_trees` gives.
        section: the rules.
        funnel: counts, added to: nodes, candidates, and what each rule removed.
        seed: decides every sample.
        length_limit: measures paths; default: one without a tokenizer.
    """
    length_limit = length_limit or LengthLimit(section.max_tokens, None, f"{kind}.tokenizer")
    kept = in_part(trees, section, seed, funnel)
    if kept.is_empty():
        return pl.DataFrame(schema=polars_schema(kind))
    forest = unfold(kept, rollouts=section.rollouts)
    if isinstance(section, PrmPairsSection):
        pairs = comparable_nodes(forest, section, funnel, length_limit)
    elif section.by_thresholds:
        pairs = good_and_bad_answers(forest, section, funnel, length_limit, seed)
    elif section.granularity == "trajectory":
        pairs = any_answers(forest, section, funnel, length_limit)
    else:
        pairs = siblings(forest, section, funnel, length_limit)
    return _rows(kind, forest, inside_trees(forest, pairs, section, seed, funnel))


def _rows(kind: str, forest: Forest, pairs: pl.DataFrame) -> pl.DataFrame:
    """Make rows of the schema of pairs of node numbers."""
    chosen, rejected = pairs["chosen"].to_numpy(), pairs["rejected"].to_numpy()
    both = np.unique(np.concatenate([chosen, rejected]))
    texts = path_texts(forest, both)
    lengths = path_sums(forest, forest.nodes["step"].str.len_chars().cast(pl.Int64).to_numpy())
    columns: dict[str, Any] = dict(zip(_TREE, forest.trees[forest.nodes["tree"].gather(chosen)][_TREE], strict=True))
    columns |= {
        "granularity": pairs["granularity"],
        "prefix_length": lengths[common_ancestors(forest, chosen, rejected)],
    }
    for side, rows in (("chosen", chosen), ("rejected", rejected)):
        columns[side] = texts.gather(np.searchsorted(both, rows))
        for name in ("node_id", "value", "visits", "is_terminal"):
            columns[f"{side}_{name}"] = forest.nodes[name].gather(rows)
    columns["depth"] = forest.nodes["depth"].gather(chosen)
    columns["margin"] = columns["chosen_value"] - columns["rejected_value"]
    frame = pl.DataFrame(columns)
    frame = frame.sort("tree_id", "chosen_node_id", "rejected_node_id", "granularity")
    keys = frame.select("tree_id", "chosen_node_id", "rejected_node_id", "granularity").iter_rows()
    ids = pl.Series("pair_id", [identity.pair_id(*key) for key in keys], pl.String)
    schema = polars_schema(kind)
    return frame.with_columns(ids).select(list(schema)).cast(schema)


def _no_pairs(
    kind: str, trees: Artifact, section: PairsSection, funnel: Counter[str], refused: list[QuarantineRow]
) -> str:
    removed = {name.removeprefix("removed_"): count for name, count in funnel.items() if name.startswith("removed_")}
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in removed.items()) or "none"
    broken = (
        f" {len(refused)} trees were refused ({', '.join(sorted({each.rule for each in refused}))})." if refused else ""
    )
    other_rule = (
        f"; answers that are all safe make no pair by thresholds: set {kind}.trajectory_rule to margin"
        if section.by_thresholds
        else ""
    )
    return (
        f"no pair for {kind} in {trees.reference} ({trees.manifest.rows} trees, {funnel['nodes']} nodes below "
        f"their roots, {funnel['candidates']} candidates).{broken} Removed: {counts}. Lower {kind}.min_margin "
        f"({section.min_margin}), {kind}.min_chosen_value ({section.min_chosen_value}) or {kind}.min_visits "
        f"({section.min_visits}), or grow trees with more iterations{other_rule}"
    )
