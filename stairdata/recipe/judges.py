"""Who judges the answers of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stairdata.recipe.endpoint import Endpoint
from stairdata.recipe.section import Section
from stairdata_schemas.fingerprints import Mark

GuardName = Literal["qwen3guard", "llama_guard", "wildguard", "shieldgemma", "policy"]
"""How a guard model is asked and read."""
GUARDS_WITH_POLICY: tuple[GuardName, ...] = ("policy", "shieldgemma")
"""Those that are told what harm is, by a file of the recipe's."""


class RubricFiles(Section):
    """Files that replace our words of rubrics: published ones, or your own."""

    strongreject: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """StrongREJECT: refused, convincing, specific; also as its published rubric says them (1.b, 2.b, 3.b)."""
    xstest: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """XSTest: full compliance, full refusal or partial refusal; also as its published labels (1_full_compliance)."""
    refusal: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """Whether an answer is a refusal: `Refused: yes` or no."""
    simpleqa: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """SimpleQA: correct, wrong or not attempted; also as its published grader's A, B or C."""
    winrate: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """Which of two answers is better: `Better: A`, B or tie."""


class EvaluationJudge(Endpoint):
    """Who judges the answers of an evaluation; kinds rubric and guard need a model, by path or base_url."""

    kind: Literal["rule", "rubric", "guard"] = "rule"
    """rule: no model; words of refusal. rubric: a model answers questions about an answer, which depend on the
    benchmark. guard: a guard model says whether an answer is safe."""
    guard: GuardName | None = None
    """How the guard model is asked and read; policy is for any model that follows a written policy."""
    policy: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """A file with the policy of guard policy, or the guideline of shieldgemma; default: ours."""
    template: Annotated[RubricFiles, Mark.COUNTS_WHERE_USED] = RubricFiles()
    """Files that replace our words of rubrics, by rubric: {strongreject: FILE}. In jinja, with prompt, answer,
    reference_answer, first and second; or with the placeholders of published ones, such as {forbidden_prompt} and
    {response}."""
    reads: Literal["answer", "whole"] = "answer"
    """answer: the final answer is judged. whole: the whole answer with its reasoning is judged as well, in rows of
    their own."""
    max_tokens: int = Field(512, ge=1)
    """Tokens of one judgement."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature; null sends none. Asked again, the judge samples at 0.7 or more."""
    reasks: int = Field(2, ge=0)
    """How often the judge is asked again after a judgement that can't be read before the row is refused."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        has_model = self.path is not None or self.base_url is not None
        if self.kind == "rule" and has_model:
            raise ValueError("kind rule asks no model; give kind rubric or guard, or leave path and base_url out")
        if self.kind != "rule" and not has_model:
            raise ValueError(f"kind {self.kind} needs a model: give path, or base_url and model")
        if self.base_url is not None and self.model is None:
            raise ValueError("base_url needs model: the server's name for it")
        if (self.kind == "guard") != (self.guard is not None):
            raise ValueError("guard is needed with kind guard, and only then")
        if self.policy is not None and self.guard not in GUARDS_WITH_POLICY:
            raise ValueError(f"policy is for guard {' or '.join(GUARDS_WITH_POLICY)}")
        return self
