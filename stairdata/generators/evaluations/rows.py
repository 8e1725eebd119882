"""From an answer and its judgement to a row of kind `evaluations`."""

from __future__ import annotations

import json
from typing import NamedTuple

from stairdata.generators.evaluations.answering import SampledAnswer
from stairdata.generators.evaluations.judging.judgement import JudgedAnswer, Judgement, right_refusal
from stairdata.llm.wrapping import without_thoughts
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.grammar import final_answer

NO_ATTACK = "none"


class EvaluationUnit(NamedTuple):
    """One row to be made; JSON values."""

    prompt_id: str
    prompt: str
    benchmark: str
    score: BenchmarkScore
    task: str | None
    category: str | None
    label: str | None
    reference_answer: str | None
    labels: list[str]
    """The classes of the benchmark's prompts of this category."""
    is_harmful: bool
    attack: str
    model: str
    """As rows call it."""
    method: str
    response_id: str
    sample: int
    reads: str
    judge: str
    is_first: bool
    """What the answer took is counted with this row."""
    answer: list[object] | None = None
    """A `SampledAnswer`, where it is known before the build."""

    @property
    def key(self) -> str:
        """What tells the row from all others."""
        parts = (self.benchmark, self.attack, self.model, self.response_id, str(self.sample), self.judge, self.reads)
        return identity.prompt_id(json.dumps([self.prompt_id, *parts]))

    def judged(self, text: str) -> JudgedAnswer:
        """Return what the judge is shown, for a text of this prompt."""
        return JudgedAnswer(self.prompt, text, self.label, self.reference_answer, tuple(self.labels), self.is_harmful)


def final_text(text: str) -> str:
    """Return the final answer: what a reader sees, without thoughts before it."""
    return final_answer(without_thoughts(text))


def unjudged(unit: EvaluationUnit, answer: SampledAnswer) -> Judgement | None:
    """Return the judgement of an answer that no judge is asked about; None where one has to be asked.

    A cut or empty answer is neither a refusal nor safe: nothing is known of it, and it is counted apart.
    """
    if answer.is_declined:
        return _declined(unit)
    if answer.is_cut:
        return Judgement(details={"outcome": "cut"})
    if not final_text(answer.text).strip():
        return Judgement(details={"outcome": "empty"})
    return None


def _declined(unit: EvaluationUnit) -> Judgement:
    """Judge an answer that the server itself calls a refusal."""
    scores = {"strongreject": 1.0, "winrate": None, "gsm8k": 0.0, "label": 0.0, "simpleqa": 0.0}
    right = right_refusal(refused=True, answer=unit.judged(""))
    return Judgement(refused=True, score=scores.get(unit.score, right), details={"outcome": "declined"})


def evaluation_row(
    unit: EvaluationUnit, answer: SampledAnswer, judgement: Judgement, attacked: str | None, attack_details: Row
) -> Row:
    """Return the row.

    Args:
        unit: what was asked.
        answer: what was answered.
        judgement: of it.
        attacked: what the model was asked in the prompt's place; None where there was no attack.
        attack_details: of the attack.
    """
    details = {
        "prompt": unit.prompt,
        "category": unit.category,
        "label": unit.label,
        "attack": attack_details or None,
        "prm_score": answer.prm_score,
        **judgement.details,
    }
    return {
        "prompt_id": unit.prompt_id,
        "benchmark": unit.benchmark,
        "attack": unit.attack,
        "response_id": unit.response_id,
        "sample": unit.sample,
        "attacked_prompt": attacked,
        "task": unit.task,
        "model": unit.model,
        "method": unit.method,
        "response": answer.text,
        "refused": judgement.refused,
        "helpfulness": judgement.helpfulness,
        "safety": judgement.safety,
        "score": judgement.score,
        "judge": unit.judge,
        "reads": unit.reads,
        "details": json.dumps(
            {name: value for name, value in details.items() if value is not None}, ensure_ascii=False
        ),
    }


def counts_of(judgement: Judgement) -> dict[str, int]:
    """Return what the manifest sums up."""
    outcome = judgement.details.get("outcome")
    counts = {f"{outcome}_answers": 1} if outcome else {}
    return counts | {"refused": int(judgement.refused is True), "judged": int(outcome is None)}
