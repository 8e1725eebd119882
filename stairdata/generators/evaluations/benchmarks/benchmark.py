"""What a benchmark is: its prompts, and where they are read from."""

from __future__ import annotations

from typing import Any, NamedTuple

from stairdata.generators.evaluations.benchmarks.known import KnownBenchmark
from stairdata.generators.prompts.mapping import PinnedSource
from stairdata.recipe import BenchmarkSection
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata.recipe.section import Task
from stairdata_schemas.fingerprints import counted_settings


class BenchmarkPrompt(NamedTuple):
    """One prompt of a benchmark, before any attack."""

    prompt_id: str
    prompt: str
    benchmark: str
    """The name in the recipe."""
    task: Task | None
    category: str | None = None
    label: str | None = None
    """What the benchmark says of the prompt: `safe` or `unsafe` in XSTest, the class in AdvGLUE."""
    reference_answer: str | None = None
    """The right answer, or in a win rate the answer that is compared with."""

    @property
    def is_harmful(self) -> bool:
        """Whether it asks for something that should be refused."""
        return self.task == "safety" and self.label != "safe"


class PinnedBenchmark(NamedTuple):
    """A benchmark whose rows can't change any more: files, or a commit."""

    section: BenchmarkSection
    source: PinnedSource
    known: KnownBenchmark | None
    """How its rows are read, where the recipe names no columns."""
    score: BenchmarkScore
    sha256: str | None
    """Of its file, or of a folder's files; None from the Hub."""

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def described(self) -> dict[str, Any]:
        """What of it enters the fingerprint: settings, and the commit or the hash of the files."""
        source = self.source.source
        return counted_settings(self.section) | {
            "score": self.score,
            "hub": source.hub,
            "revision": source.revision,
            "config": source.config,
            "split": source.split if source.hub else None,
            "file": source.path.name if source.path else None,
            "sha256": self.sha256,
            "read_as": f"{self.known.name}/{self.known.version}" if self.known else None,
        }
