"""What every generator is told besides its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stairdata.generators.progress import Progress, quiet
from stairdata.hub.pull import open_reference
from stairdata.llm.budget import BudgetLimits
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.errors import UsageError

__all__ = ["BuildOptions", "Progress", "quiet"]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Where to build, from what, how much, and at what cost."""

    root: Path = Path("artifacts")
    version: str | None = None
    inputs: tuple[str, ...] = ()
    limit: int | None = None
    fresh: bool = False
    max_quarantine: float = 0.05
    progress: Progress = quiet
    limits: BudgetLimits = field(default_factory=BudgetLimits)
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

    def parent(self, kind: str) -> Artifact:
        """Open the input of a kind: the one named by --input, else the newest local one."""
        named = [open_reference(reference, self.root) for reference in self.inputs]
        of_kind = [artifact for artifact in named if artifact.kind == kind]
        if len(of_kind) > 1:
            raise UsageError(f"more than one --input of kind {kind}: {', '.join(self.inputs)}")
        if named and not of_kind:
            kinds = ", ".join(artifact.reference for artifact in named)
            raise UsageError(f"this build needs an input of kind {kind}; --input gave {kinds}")
        return of_kind[0] if of_kind else resolve(kind, self.root)

    def names(self, kind: str) -> bool:
        """Tell whether --input names an artifact of a kind."""
        return any(open_reference(reference, self.root).kind == kind for reference in self.inputs)

    def waiting(self, what: str, seconds: float) -> None:
        """Report that something takes its time, such as the start of a server."""
        self.progress(f"{what} ({seconds:.0f} s)", 0, 0)

    def rows(self, parent: Artifact, columns: list[str]) -> list[dict[str, Any]]:
        """Read some columns of an input, as many rows as --limit allows."""
        lazy = parent.scan().select(columns)
        return (lazy if self.limit is None else lazy.head(self.limit)).collect().to_dicts()
