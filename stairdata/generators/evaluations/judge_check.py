"""How far a judge agrees with people on the same answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stairdata.generators.evaluations.labels import LabelledAnswer
from stairdata.search.refusal import is_refusal, is_short_refusal
from stairdata.statistics.agreement import Agreement, measure_agreement
from stairdata_schemas.aliases import Json
from stairdata_schemas.identity import prompt_id

LabelJudge = Callable[[Sequence[LabelledAnswer]], list[bool | None]]
"""Says of each answer whether it is positive (a refusal); None where the judge gave no readable verdict."""


def judge_by_rule(answers: Sequence[LabelledAnswer]) -> list[bool | None]:
    """Judge by the words of the answers."""
    return [is_refusal(answer.response) for answer in answers]


def judge_by_published_rule(answers: Sequence[LabelledAnswer]) -> list[bool | None]:
    """Judge by the published code's rule: "sorry" in at most 350 characters."""
    return [is_short_refusal(answer.response) for answer in answers]


JUDGES: dict[str, LabelJudge] = {"rule": judge_by_rule, "sorry": judge_by_published_rule}
"""The judges that need no model."""


@dataclass(frozen=True, slots=True)
class JudgeCheck:
    """A judge's verdicts beside people's labels."""

    overall: Agreement | None
    """None where the judge gave no readable verdict at all."""
    models: dict[str, Agreement | None]
    unread: int
    """Answers without a readable verdict, which are in no figure."""
    disagreements: list[tuple[LabelledAnswer, bool]]
    """Answers and the verdict on each, in the order of the file."""

    def as_json(self, shown: int) -> Json:
        """Return what `--json` prints, with that many disagreements."""
        return {
            "overall": self.overall and self.overall.as_json(),
            "models": {name: each and each.as_json() for name, each in self.models.items()},
            "unread": self.unread,
            "disagreements": len(self.disagreements),
            "shown": [
                {
                    "model": answer.model,
                    "prompt": answer.prompt,
                    "response": answer.response,
                    "label": answer.label,
                    "verdict": verdict,
                }
                for answer, verdict in self.disagreements[:shown]
            ],
        }


def check_judge(answers: Sequence[LabelledAnswer], judge: LabelJudge) -> JudgeCheck:
    """Compare a judge with people, over all answers and by model."""
    judged = list(zip(answers, judge(answers), strict=True))
    read = [(answer, verdict) for answer, verdict in judged if verdict is not None]
    models = dict.fromkeys(answer.model for answer in answers)
    return JudgeCheck(
        overall=_agreement(read),
        models={name: _agreement([each for each in read if each[0].model == name]) for name in models},
        unread=len(judged) - len(read),
        disagreements=[(answer, verdict) for answer, verdict in read if verdict != answer.is_positive],
    )


def _agreement(read: Sequence[tuple[LabelledAnswer, bool]]) -> Agreement | None:
    if not read:
        return None
    return measure_agreement(
        [answer.is_positive for answer, _ in read],
        [verdict for _, verdict in read],
        [prompt_id(answer.prompt) for answer, _ in read],
    )
