"""Stage `trees`: SI-MCTS, and who rates answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stairdata.recipe.endpoint import Endpoint
from stairdata.recipe.judges import GUARDS_WITH_POLICY, GuardName
from stairdata.recipe.section import MOST, Concurrency, Sampling, Section
from stairdata_schemas.fingerprints import Mark


class GuardLabels(Section):
    """S by what a guard model says of an answer."""

    safe: float = Field(1.0, ge=-1, le=1)
    """S of an answer that the guard calls safe."""
    controversial: float = Field(0.0, ge=-1, le=1)
    """S of one that it calls controversial, as Qwen3Guard alone does: harmful in some contexts."""
    unsafe: float = Field(-1.0, ge=-1, le=1)
    """S of one that it calls unsafe."""

    @model_validator(mode="after")
    def _safe_is_best(self) -> Self:
        if not self.safe > max(self.controversial, self.unsafe):
            raise ValueError("safe has to be above controversial and unsafe, or the search would look for harm")
        return self


class JudgeSection(Section):
    """Who rates answers."""

    kind: Literal["self", "rule", "reference", "endpoint", "guard"] = "self"
    """self: the actor rates its own answers. rule: the published code's rule on safety prompts, the actor's
    rating on the others. reference: no model; the rule, and word F1 against reference_answer. endpoint: another
    model rates. guard: safety is what a guard model says, by `labels`; helpfulness is rated by the actor, or by
    the model of `helpfulness`."""
    style: Literal["reasoned", "direct"] = "reasoned"
    """reasoned: a short assessment, then the score. direct: the score alone, in one token; where the server gives
    log-probabilities it is the expected score over 1 to 5."""
    cache: bool = True
    """Judge equal answers of one tree once (the paper asks each time)."""
    keep_text: bool = False
    """Keep what the judge wrote, in the column `judgements`."""
    temperature: float = Field(0.6, ge=0)
    """Sampling temperature of the rating."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of the rating."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of one rating."""
    reasks: int = Field(3, ge=0)
    """How often the judge is asked again after an unreadable rating before it counts as failed."""
    endpoint: Annotated[Endpoint | None, Mark.COUNTS_UNLESS_DEFAULT] = None
    """The judge's server, for kinds endpoint and guard."""
    guard: Annotated[GuardName | None, Mark.COUNTS_UNLESS_DEFAULT] = None
    """How the guard model is asked and read, for kind guard."""
    policy: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """A file with the policy of guard policy, or the guideline of shieldgemma; default: ours."""
    labels: Annotated[GuardLabels, Mark.COUNTS_UNLESS_DEFAULT] = GuardLabels()
    """S by what the guard says, such as {safe: 1, controversial: -0.5, unsafe: -1}."""
    helpfulness: Annotated[Endpoint | None, Mark.COUNTS_UNLESS_DEFAULT] = None
    """Who rates helpfulness beside a guard; default: the actor."""
    penalise_over_refusal: Annotated[bool, Mark.COUNTS_UNLESS_DEFAULT] = False
    """For kind reference: a short refusal of a helpfulness prompt has H = -1, whatever words it shares with the
    reference answer. Off, as published, refusals of everything lose little on helpfulness prompts."""

    @property
    def asks_actor(self) -> bool:
        """Whether the actor is among those who rate."""
        return self.kind in {"self", "rule"} or (self.kind == "guard" and self.helpfulness is None)

    @model_validator(mode="after")
    def _endpoint_is_named(self) -> Self:
        if (self.kind in {"endpoint", "guard"}) != (self.endpoint is not None):
            raise ValueError("judge.endpoint is needed with kinds endpoint and guard, and only then")
        if (self.kind == "guard") != (self.guard is not None):
            raise ValueError("judge.guard is needed with kind guard, and only then")
        if self.kind != "guard" and (self.helpfulness is not None or self.labels != GuardLabels()):
            raise ValueError("judge.labels and judge.helpfulness are for kind guard")
        if self.policy is not None and self.guard not in GUARDS_WITH_POLICY:
            raise ValueError(f"judge.policy is for guard {' or '.join(GUARDS_WITH_POLICY)}")
        if self.penalise_over_refusal and self.kind != "reference":
            raise ValueError("judge.penalise_over_refusal is for kind reference; the other kinds are asked for H")
        return self


class TreesSection(Sampling):
    """Stage `trees`: SI-MCTS (paper section 3.2 and Algorithm 1)."""

    iterations: int = Field(200, ge=1, le=MOST)
    """Iterations of select, expand, evaluate, back up in each tree."""
    samples: int = Field(4, ge=1)
    """Steps sampled at one expansion (m)."""
    max_depth: int = Field(7, ge=1)
    """Depth at which nodes are no longer expanded."""
    c: float = Field(1.5, ge=0)
    """Exploration constant."""
    score: Literal["ucb", "pucb"] = "ucb"
    """How a child is selected. ucb: V + c sqrt(ln N_parent / N). pucb: V + c p sqrt(N_parent) / (1 + N), where p is the
    mean probability of the child's tokens; needs a server that gives log-probabilities."""
    prior: Literal["arithmetic", "geometric"] = "arithmetic"
    """Which mean of the token probabilities p is."""
    parallel: int = Field(1, ge=1)
    """Rollouts of one tree at a time, kept apart by a virtual loss; more than 1 changes the search (a deviation from
    the paper) and helps only if there are fewer prompts than the server could answer at a time."""
    virtual_loss: float = Field(1.0, ge=0)
    """With parallel rollouts: reward subtracted from the nodes above a rollout in progress."""
    max_tokens: int = Field(2048, ge=1)
    """Tokens of one step; a step cut there is dropped and counted."""
    rollout_tokens: int = Field(2048, ge=1)
    """Tokens of one rollout; cut there, it is judged as it stands."""
    fused: bool = True
    """Sample whole answers at an expansion: the first step of each is a child, the rest that child's first rollout,
    backed up when the search first visits the child. The same distribution of trees in one request instead of m+1,
    wherever no token limit cuts."""
    visit_all_leaves: bool = True
    """Evaluate every leaf that is still unvisited at the end."""
    judge: JudgeSection = JudgeSection()
    """Who rates answers."""
    k1: float = Field(1.0, ge=1)
    """Weight of safety times helpfulness in R = (k1 + k2) S + k1 S H."""
    k2: float = Field(1.0, gt=0, le=1)
    """Extra weight of safety in R."""
    trees_per_prompt: int = Field(1, ge=1)
    """Trees grown from each prompt, each with its own randomness."""
    round: int = Field(1, ge=0, le=MOST)
    """Round of trees, pairs and DPO, written into the rows."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_RESULT] = "auto"
    """Trees in flight at most; auto: a tree is started whenever the actor could take one more request."""
