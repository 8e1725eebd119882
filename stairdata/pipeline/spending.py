"""What a run may still spend: its limits, less what its stages have used."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stairdata.llm.budget import BudgetLimits, Expense
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import BudgetError


@dataclass(slots=True)
class RunSpending:
    """The limits of a run, and what the stages so far have used; those that earlier commands finished count, too."""

    limits: BudgetLimits
    spent: Expense = field(default_factory=Expense)
    _began: float = field(default_factory=time.monotonic)

    def count(self, artifact: Artifact) -> None:
        """Add what an artifact of this run has cost, in all runs of its build."""
        manifest = artifact.manifest
        used = manifest.usage.prompt_tokens + manifest.usage.completion_tokens
        tokens = manifest.details.get("tokens_of_all_runs", used)
        self.spent = self.spent.plus(Expense(int(tokens), manifest.usage.cost or 0.0))

    def left(self) -> BudgetLimits:
        """Return the limits of the next stage."""
        limits = self.limits
        return BudgetLimits(
            None if limits.total_tokens is None else max(0, limits.total_tokens - self.spent.tokens),
            None if limits.cost is None else max(0.0, limits.cost - self.spent.cost),
            None if limits.seconds is None else max(0.0, limits.seconds - self._elapsed()),
        )

    def check_time(self, what: str) -> None:
        """Refuse to begin what can't be stopped halfway once the time is over.

        Raises:
            BudgetError: it is.
        """
        seconds = self.limits.seconds
        if seconds is not None and self._elapsed() >= seconds:
            raise BudgetError(
                f"--max-seconds {seconds:g} has passed before {what}; finished work is kept: run the same command again"
            )

    def explained(self, error: BudgetError) -> BudgetError:
        """Say how a stage's limit came about, where earlier stages have used some of the run's."""
        limits = self.limits
        of_run = [
            f"--max-total-tokens {limits.total_tokens}" if limits.total_tokens is not None else "",
            f"--max-cost {limits.cost:g}" if limits.cost is not None else "",
        ]
        named = " and ".join(filter(None, of_run))
        if not named or self.spent == Expense():
            return error
        return BudgetError(
            f"{error} (the run has {named}, of which earlier stages used {self.spent.tokens} tokens, "
            f"cost {self.spent.cost:.4f})"
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._began
