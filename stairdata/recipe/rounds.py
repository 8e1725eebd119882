"""`stairdata run`: how many rounds, on which prompts, and what is measured after each."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from stairdata.recipe.prompts import PromptSource
from stairdata.recipe.section import Section

Measure = Literal[
    "grammar",
    "refusals_safety",
    "refusals_helpfulness",
    "word_f1",
    "mean_tokens",
    "dpo_accuracy",
    "held_out_accuracy",
    "refused_harmful",
    "refused_harmless",
]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""The columns of rounds.csv that `stop_below` can name."""


class SearchSettings(Section):
    """How the last actor searches at the end of a run; the keys are those of `responses`."""

    method: Literal["best_of_n", "beam", "sample"] = "best_of_n"
    """best_of_n or beam; or sample: all n answers are scored and tested, so that ways to choose among them can be
    compared."""
    n: int = Field(4, ge=1)
    """Answers per prompt, of best_of_n and sample."""
    width: int = Field(4, ge=1)
    """Beginnings of answers that go on at each level, of beam."""
    expansions: int = Field(4, ge=1)
    """Next steps sampled for each of them, of beam."""
    max_depth: int = Field(7, ge=1)
    """Steps after which an answer is no longer searched, of beam."""
    diverse: bool = False
    """Separate subtrees, of beam."""

    @property
    def title(self) -> str:
        """What stages and pages call it."""
        if self.method == "best_of_n":
            return f"best of {self.n}"
        if self.method == "sample":
            return f"{self.n} scored samples"
        return f"{'diverse ' if self.diverse else ''}beam {self.width} x {self.expansions}"

    def settings(self) -> dict[str, int | str | bool]:
        """Return what it sets in `responses`."""
        if self.method != "beam":
            return {"method": self.method, "n": self.n}
        return {"n": 1} | self.model_dump(include={"method", "width", "expansions", "max_depth", "diverse"})


class RoundsSection(Section):
    """`stairdata run`: rounds of trees, pairs and DPO, each on prompts of its own."""

    count: int = Field(3, ge=1)
    """Rounds of trees, pairs and DPO; each begins with the actor that the one before made."""
    prompts_per_round: int | None = Field(None, ge=1)
    """Prompts that trees are grown from in a round; no prompt is in two rounds. Default: all prompts that are not held
    out, divided by `count`. With a number, more rounds can be added later and the finished ones stay."""
    held_out: int = Field(100, ge=0)
    """Prompts that are set aside, in no round and not asked of the teacher: each model's answers to them are measured.
    0 measures no answers."""
    eval_prompts: int = Field(0, ge=0)
    """Prompts in no round and not among the `held_out` ones, from which each actor grows trees of its own: DPO and the
    process reward model are measured on their pairs. The same prompts in every round; 0 measures on none."""
    sft_prompts: list[PromptSource] = []
    """Sources of the prompts that the teacher is asked, with the keys of `prompts.sources`; default: all prompts that
    are not held out."""
    sft_rows: int | None = Field(None, ge=1)
    """Rows of structured reasoning at most; default: all."""
    best_of: int = Field(1, ge=1)
    """At the end the last actor gives so many answers to each held-out prompt, of which the process reward model picks
    the best; 1 leaves this out."""
    searches: list[SearchSettings] = []
    """Ways in which the last actor searches at the end, each tested on the benchmarks of `evaluations`:
    [{method: best_of_n, n: 4}, {method: beam, width: 2, expansions: 2}]."""
    searched_prompts: int | None = Field(None, ge=1)
    """Prompts of each benchmark that are searched, unattacked, a part of those that are answered once; default: all."""
    reviews: dict[int, str] = {}
    """Reviews that decide which pairs of a round are kept, by the number of the round: {1: reviews@1.0.0}."""
    stop_below: dict[Measure, float] = {}
    """Measures of rounds.csv that end the run after a round in which they are below a value: {grammar: 0.5}."""

    @model_validator(mode="after")
    def _rounds_that_exist(self) -> Self:
        beyond = sorted(number for number in self.reviews if not 1 <= number <= self.count)
        if beyond:
            raise ValueError(f"reviews name round {beyond[0]}, and the rounds are 1 to {self.count}")
        return self
