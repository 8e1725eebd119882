"""What every generator is told besides its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stairdata.generators.progress import Progress, quiet
from stairdata.llm.budget import Limits
from stairdata_schemas.artifacts import Artifact

__all__ = ["BuildOptions", "Progress", "quiet"]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Where to build, from what, how much, and at what cost."""

    root: Path = Path("artifacts")
    version: str | None = None
    inputs: tuple[str, ...] = ()
    """References of artifacts to build from; `open_inputs` looks them up, once a build."""
    limit: int | None = None
    fresh: bool = False
    max_quarantine: float = 0.05
    progress: Progress = quiet
    limits: Limits = field(default_factory=Limits)
    endpoints: tuple[str, ...] = ()
    """Servers of the actor, in place of the recipe's one."""
    executor: str = "local"
    """local: this process. ray: Ray Data."""
    address: str | None = None
    """The Ray cluster's; default: one started here."""
    reviews: str | None = None
    """Reference of the reviews that decide which pairs train."""
    pilot: int | None = None
    """Stop after that many units and leave the build unfinished."""
    teachers: tuple[str, ...] = ()
    """Names of teachers of structured_cot, in place of the recipe's one."""
    batch: str | None = None
    """submit, status, collect or cancel: ask teachers through the Batch API."""
    retry_quarantined: bool = False
    """Ask teachers again about what they failed at, and say why."""
    tell: Callable[[str], None] = lambda _: None
    """Called with words for the user: the table of outcomes."""

    def waiting(self, what: str, seconds: float) -> None:
        """Report that something takes its time, such as the start of a server."""
        self.progress(f"{what} ({seconds:.0f} s)", 0, 0)

    def rows(self, parent: Artifact, columns: list[str]) -> list[dict[str, Any]]:
        """Read some columns of an input, as many rows as --limit allows."""
        lazy = parent.scan().select(columns)
        return (lazy if self.limit is None else lazy.head(self.limit)).collect().to_dicts()
