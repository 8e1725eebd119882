"""Stage `structured_cot`: reasoning by teachers, from a file, or out of trees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stairdata.recipe.endpoint import Endpoint
from stairdata.recipe.section import Section, Task
from stairdata_schemas.fingerprints import InFingerprintIfSet, NotInFingerprint


class Teacher(Endpoint):
    """Who writes structured reasoning."""

    max_tokens: int = Field(1500, ge=1)
    """Tokens of one answer."""
    temperature: float | None = Field(0.7, ge=0)
    """Sampling temperature; null sends none, for models that take none."""
    format: Literal["json", "text"] = "json"
    """json: structured outputs, rendered here, so that the grammar always holds. text: the teacher writes the step
    grammar itself, for servers without structured outputs; what does not parse is refused."""


class CotJudge(Endpoint):
    """Who compares teachers, and tells whether an answer complies with a harmful request."""

    max_tokens: int = Field(512, ge=1)
    """Tokens of one judgement."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature; null sends none."""
    reasks: int = Field(2, ge=0)
    """How often a judgement that can't be read is asked again before the judge counts as failed."""


class GateSection(Section):
    """What an answer of a teacher has to be, beyond the step grammar; what fails goes to quarantine with its rule."""

    min_steps: int = Field(1, ge=1)
    """Reasoning steps at least."""
    max_steps: int = Field(12, ge=1)
    """Reasoning steps at most."""
    min_characters: int = Field(40, ge=0)
    """Characters of all titles, bodies and the final answer at least."""
    max_characters: int = Field(12_000, ge=1)
    """Characters of all titles, bodies and the final answer at most."""
    compliance: bool = True
    """With a judge: refuse answers that comply on safety prompts whose reference answer is unsafe."""

    @model_validator(mode="after")
    def _something_passes(self) -> Self:
        for what in ("steps", "characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least > most:
                raise ValueError(f"min_{what} {least} is more than max_{what} {most}: no answer could pass")
        return self


class TemplatesSection(Section):
    """Files with jinja templates in place of the project's own."""

    safety: Path | None = None
    """What a teacher is asked on safety prompts."""
    helpfulness: Path | None = None
    """What a teacher is asked on helpfulness prompts."""


class BatchSection(Section):
    """How `--batch` splits requests; the defaults are the limits of OpenAI's Batch API."""

    max_requests: int = Field(50_000, ge=1)
    """Requests of one batch at most."""
    max_bytes: int = Field(200_000_000, ge=1000)
    """Bytes of one batch's file at most."""
    max_enqueued_tokens: int | None = Field(None, ge=1)
    """Prompt tokens of all batches under way at most: the account's batch queue limit for the model. What exceeds it
    waits for the next `--batch`."""


class FromTreesSection(Section):
    """SFT rows out of trees: good answers of the actor's own."""

    min_value: float = 0.8
    """An answer has to be worth at least this."""
    max_tokens: int = Field(2048, ge=1)
    """Rendered prompt plus answer may have at most that many tokens."""
    tokenizer: Annotated[str | None, NotInFingerprint] = None
    """Folder or Hub id of the tokenizer that measures what has no `tokens`; default: the actor's."""
    max_per_prompt: int = Field(8, ge=1)
    """Answers of a prompt at most; more are sampled."""
    task: Task | None = None
    """Task of trees that don't say theirs, such as imported ones."""


class StructuredCotSection(Section):
    """Stage `structured_cot`: reasoning by a teacher, from a file, or out of trees."""

    from_trees: Annotated[FromTreesSection | None, NotInFingerprint] = None
    """Take the rows out of trees ({} for the defaults); `--input trees@X.Y.Z` does so, too."""
    path: Annotated[Path | None, NotInFingerprint] = None
    """Rows written by hand: JSONL with prompt, task, steps, output. Without it a teacher is asked."""
    hub: Annotated[str | None, NotInFingerprint] = None
    """A published set of such rows on the Hub: thu-ml/STAIR-SFT."""
    like: Annotated[str | None, NotInFingerprint] = None
    """Read `path` as a file of that set."""
    revision: Annotated[str | None, NotInFingerprint] = None
    """Commit, tag or branch of the published set; default: its head."""
    license: Annotated[str | None, NotInFingerprint] = None
    """Licence of the rows written by hand, or of the published set, as the Hub names it."""
    teacher: Annotated[Teacher, NotInFingerprint] = Teacher()
    """The model that writes the reasoning."""
    teachers: Annotated[dict[str, Teacher], NotInFingerprint] = {}
    """More of them by name, for `--teachers a,b`; a name that is not here is a model at the server of `teacher`."""
    judge: Annotated[CotJudge | None, InFingerprintIfSet] = None
    """Who keeps the better of two candidates, and finds answers that comply with harmful requests."""
    gate: GateSection = GateSection()
    """What an answer has to be."""
    templates: Annotated[TemplatesSection, NotInFingerprint] = TemplatesSection()
    """Other words for the teacher."""
    batch: Annotated[BatchSection, NotInFingerprint] = BatchSection()
    """How `--batch` splits requests."""
    concurrency: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], NotInFingerprint] = "auto"
    """Prompts in flight at most; auto: one is begun whenever the server could take one more request."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.from_trees is not None:
            raise ValueError("give path or from_trees, not both")
        if self.hub is not None and (self.path is not None or self.from_trees is not None):
            raise ValueError("give hub alone, without path and from_trees")
        return self
