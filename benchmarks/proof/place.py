"""Where everything of a proof lies, and what its main line was told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stairdata_schemas.errors import InputError
from stairdata_schemas.files import write_atomic

if TYPE_CHECKING:
    from .items import Item


@dataclass(frozen=True, slots=True)
class MainSettings:
    """What the main line was told; all that follows from it uses the same."""

    data: str | None = None
    """Folder of files in place of the Hub's datasets."""
    smoke: bool = False
    """Tiny sizes, bundled prompts alone."""
    overrides: tuple[str, ...] = ()
    """Keys of the recipe that were set: key.key=value."""


@dataclass(frozen=True, slots=True)
class ProofPlace:
    """The folder of a proof."""

    root: Path

    @property
    def start_model(self) -> Path:
        """SmolLM2, which all trainings begin with."""
        return self.root / "base"

    @property
    def main(self) -> Path:
        """The run of the main line; comparisons share its artifacts and models."""
        return self.root / "main"

    @property
    def data(self) -> Path:
        """Files that the proof writes for itself."""
        return self.root / "data"

    def record(self, item: Item) -> Path:
        """Where an item leaves its stages and figures; other seeds leave all that they make."""
        return self.root / (item.name if item.has_own_folder else Path("items") / item.name)

    def write_settings(self, settings: MainSettings) -> None:
        """Keep what the main line is told."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / "settings.json", json.dumps(asdict(settings), indent=2) + "\n")

    def read_settings(self) -> MainSettings:
        """Return what the main line was told.

        Raises:
            InputError: there is no main line yet.
        """
        file = self.root / "settings.json"
        if not file.is_file():
            raise InputError(f"there is no main line in {self.root}; begin with `make proof PROOF={self.root}`")
        found = json.loads(file.read_text(encoding="utf-8"))
        return MainSettings(found["data"], found["smoke"], tuple(found["overrides"]))
