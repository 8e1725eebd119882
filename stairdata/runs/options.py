"""What every generator is told besides its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stairdata.llm.budget import BudgetLimits
from stairdata.runs.progress import Progress, quiet
from stairdata.runs.prompt_parts import PromptPart
from stairdata.runs.shards.shard import Shard


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What a build is told about asking in batches."""

    action: str = "submit"
    """submit, status, collect or cancel."""
    files: Path | None = None
    """Folder in which batches are files for `vllm run-batch`; None: they go to the servers' Batch API."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Where to build, from what, how much, and at what cost."""

    root: Path = Path("artifacts")
    version: str | None = None
    """Default: the next one."""
    inputs: tuple[str, ...] = ()
    """References of input artifacts; default: the newest local one of the kind that is needed."""
    limit: int | None = None
    """Input rows at most."""
    part: PromptPart | None = None
    """Of trees: grow them from this part of the prompts alone; default: from all."""
    shard: Shard | None = None
    """Of builds that ask models: work on this part of the input alone."""
    batch: BatchOptions | None = None
    """Of responses and evaluations: ask in batches; None asks live."""
    only_finished: bool = False
    """Return what is finished, and build nothing (`NotBuiltError`)."""
    fresh: bool = False
    """Start over instead of continuing an unfinished build."""
    max_quarantine: float = 0.05
    """Largest share of refused rows."""
    progress: Progress = quiet
    limits: BudgetLimits = field(default_factory=BudgetLimits)
    on_begin: Callable[[], None] = lambda: None
    """Called once a build is found to have something left to make; not by that of a teacher's structured_cot."""
    tell: Callable[[str], None] = lambda _: None
    """Called with text for the user: the table of outcomes, say."""
