"""Attacks: prompts rewritten so that a model may answer what it should refuse."""

from stairdata.generators.evaluations.attacks.attack import (
    AskAttacker,
    AskTarget,
    Attack,
    AttackedPrompt,
    AttackOutcome,
    AttackRequest,
    AttackResult,
    AttackRun,
    AttackScore,
    AttackText,
    ScoreAnswer,
)
from stairdata.generators.evaluations.attacks.planning import attacked_prompts, plan_attacks

__all__ = [
    "AskAttacker",
    "AskTarget",
    "Attack",
    "AttackOutcome",
    "AttackRequest",
    "AttackResult",
    "AttackRun",
    "AttackScore",
    "AttackText",
    "AttackedPrompt",
    "ScoreAnswer",
    "attacked_prompts",
    "plan_attacks",
]
