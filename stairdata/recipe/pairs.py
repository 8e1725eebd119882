"""Stages `preference_pairs` and `prm_pairs`: which pairs are taken from trees."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stairdata.recipe.section import MOST, Section
from stairdata_schemas.fingerprints import Mark


class PairsSection(Section):
    """Stages `preference_pairs` and `prm_pairs`; thresholds as published, further selection off by default."""

    min_margin: float = Field(0.5, ge=0)
    """The chosen value has to exceed the rejected one by more than this."""
    min_chosen_value: float = 0.8
    """The chosen value has to be at least this."""
    min_visits: int = Field(4, ge=1, le=MOST)
    """Each side is terminal or visited at least this often."""
    rollouts: Annotated[bool, Mark.COUNTS_UNLESS_DEFAULT] = False
    """Take the steps of rollouts that ended in a whole answer as nodes as well, of one visit each: many more pairs of
    whole answers, whose values are surest."""
    max_tokens: int = Field(2048, ge=1)
    """Rendered prompt, path, and end-of-turn where the answer is whole, may have at most this many tokens together, as
    max_length of a training counts them; longer nodes, and those below, are in no pair."""
    tokenizer: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder or Hub id of the tokenizer that counts where trees have no `tokens` and a path has more UTF-8 bytes than
    max_tokens; default: the actor's."""
    min_margin_by_depth: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(ge=0)]] = {}
    """min_margin for some depths of the chosen node: {1: 0.8, 2: 0.6}."""
    grammatical: bool = False
    """Drop pairs whose chosen step is not a valid block of the step grammar."""
    max_similarity: float | None = Field(None, gt=0, le=1)
    """Drop near duplicates inside a tree: a pair whose compared steps both have at least this Jaccard
    index of words with those of a pair with a larger margin."""
    max_per_depth: int | None = Field(None, ge=1)
    """At most this many pairs per depth (and granularity) of a tree; a sample if there are more."""
    max_per_tree: int | None = Field(None, ge=1)
    """At most this many pairs per tree; a sample if there are more."""
    max_per_prompt: int | None = Field(None, ge=1)
    """At most this many pairs per prompt, over all its trees; a sample if there are more."""
    balance: bool = False
    """Sample as many pairs of safety prompts as of helpfulness prompts; pairs without a task are dropped."""
    hold_out: float = Field(0.0, ge=0, le=1)
    """Share of the prompts set aside for evaluation; the same prompts for both kinds of pairs at the same seed."""
    part: Literal["train", "held_out"] = "train"
    """Which prompts this build takes: those to train on, or those that hold_out set aside."""

    @property
    def by_thresholds(self) -> bool:
        """Whether pairs are of good answers and bad ones; a prompt of which every answer is safe has none."""
        return False

    @model_validator(mode="after")
    def _part_needs_a_split(self) -> Self:
        if self.part == "held_out" and not self.hold_out:
            raise ValueError("part: held_out needs a hold_out above 0")
        if self.part == "train" and self.hold_out == 1:
            raise ValueError("a hold_out of 1 leaves nothing to train on; lower it, or take part: held_out")
        return self


class ReviewsSection(Section):
    """What reviewers' verdicts do to pairs, for `build preference-pairs --reviews REF`."""

    policy: Literal["majority", "unanimous", "any_veto"] = "majority"
    """Who decides on a pair. majority: more than half of its verdicts. unanimous: all of them. any_veto: a single
    `rejected` or `both_bad` overrules it. A pair without a decision is a tie; ties are dropped, and so are pairs
    decided to be both bad."""
    overruled: Literal["flip", "drop"] = "drop"
    """What happens to a pair that reviewers decide the other way. flip: the other side becomes the chosen one (after a
    veto only if more verdicts say so than say chosen or both_bad)."""
    unreviewed: Literal["keep", "drop"] = "keep"
    """What happens to a pair with fewer verdicts than min_reviews."""
    min_reviews: int = Field(1, ge=1)
    """Verdicts that a pair needs before they decide."""

    @field_validator("policy", mode="before")
    @classmethod
    def _dashes_too(cls, value: Any) -> Any:
        return value.replace("-", "_") if isinstance(value, str) else value


class PreferencePairsSection(PairsSection):
    """Stage `preference_pairs`: which pairs are taken from trees. Thresholds are the published code's."""

    reviews: Annotated[ReviewsSection, Mark.COUNTS_WHERE_USED] = ReviewsSection()
    """How verdicts decide, if --reviews names reviews."""

    granularity: Literal["step", "trajectory"] = "step"
    """step: siblings of one parent. trajectory: whole answers, good ones against bad ones (the paper's ablation)."""
    trajectory_rule: Annotated[Literal["thresholds", "margin"], Mark.COUNTS_UNLESS_DEFAULT] = "thresholds"
    """trajectory: which answers make a pair. thresholds, as published: one of at least min_chosen_value and one of at
    most min_chosen_value - min_margin; a prompt of which every answer is safe has no bad one, since R is at least 1.
    margin: any two answers of a tree, by the rules of step pairs."""
    max_repeats: int = Field(4, ge=1)
    """trajectory by thresholds: the shorter list of a tree's good and bad answers is repeated, at most this often."""

    @property
    def by_thresholds(self) -> bool:
        """Whether pairs are trajectory pairs as published."""
        return self.granularity == "trajectory" and self.trajectory_rule == "thresholds"


class PrmPairsSection(PairsSection):
    """Stage `prm_pairs`; the number of pairs grows with the square of a tree's width, so each tree gives a sample."""

    granularity: Literal["step"] = "step"
    """step: any nodes of equal depth, and whole answers."""
    whole_answers: Annotated[bool, Mark.COUNTS_UNLESS_DEFAULT] = True
    """Pairs of whole answers as well; false leaves pairs of nodes of equal depth, of which one at most ends its
    answer."""
    max_per_depth: int | None = Field(250, ge=1)
    """At most this many pairs per depth (and granularity) of a tree; a sample if there are more. null: all."""
    max_per_tree: int | None = Field(1000, ge=1)
    """At most this many pairs per tree; a sample if there are more. null: all."""
