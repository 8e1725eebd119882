"""Stage `structured_cot`: reasoning by teachers, from a file, or out of trees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stairdata.recipe.batches import BatchSection
from stairdata.recipe.endpoint import Endpoint
from stairdata.recipe.section import Concurrency, Section, Task
from stairdata_schemas.fingerprints import Mark


class Teacher(Endpoint):
    """Who writes structured reasoning."""

    max_tokens: int = Field(1500, ge=1)
    """Tokens of one answer."""
    temperature: float | None = Field(0.7, ge=0)
    """Sampling temperature; null sends none, for models that don't accept one."""
    format: Literal["json", "text"] = "json"
    """json: structured outputs, rendered here, so that the grammar always holds. text: the teacher writes the step
    grammar itself, for servers without structured outputs; answers that don't parse are refused."""
    keep_reasoning: Annotated[bool, Mark.COUNTS_UNLESS_DEFAULT] = False
    """Keep what a teacher that thinks thought before its answer, in the column `thoughts`. It is never part of a
    completion."""


class CotJudge(Endpoint):
    """The model that compares teachers, and says whether an answer complies with a harmful request."""

    max_tokens: int = Field(512, ge=1)
    """Tokens of one judgement."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature; null sends none."""
    reasks: int = Field(2, ge=0)
    """How often the judge is asked again after an unreadable judgement before it counts as failed."""


class GateSection(Section):
    """What a teacher's answer has to satisfy beyond the step grammar; what fails goes to quarantine with the rule."""

    min_steps: int = Field(1, ge=1)
    """Minimum number of reasoning steps."""
    max_steps: int = Field(12, ge=1)
    """Maximum number of reasoning steps."""
    min_characters: int = Field(40, ge=0)
    """Minimum number of characters of all titles, bodies and the final answer."""
    max_characters: int = Field(12_000, ge=1)
    """Maximum number of characters of all titles, bodies and the final answer."""
    compliance: bool = True
    """With a judge: refuse answers that comply with safety prompts whose reference answer is unsafe."""

    @model_validator(mode="after")
    def _something_passes(self) -> Self:
        for what in ("steps", "characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least > most:
                raise ValueError(f"min_{what} {least} is more than max_{what} {most}: no answer could pass")
        return self


class TemplatesSection(Section):
    """Files with jinja templates that replace the built-in ones."""

    safety: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """What a teacher is asked on safety prompts."""
    helpfulness: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """What a teacher is asked on helpfulness prompts."""


class FromTreesSection(Section):
    """SFT rows from trees: the actor's own good answers."""

    min_value: float = 0.8
    """An answer's value has to be at least this."""
    rollouts: Annotated[bool, Mark.COUNTS_UNLESS_DEFAULT] = False
    """Take rollouts that ended in a whole answer as well, not nodes alone."""
    max_tokens: int = Field(2048, ge=1)
    """Rendered prompt, answer and end-of-turn may have at most this many tokens together, as max_length of a training
    counts them."""
    tokenizer: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder or Hub id of the tokenizer that counts where trees have no `tokens`; default: the actor's."""
    max_per_prompt: int = Field(8, ge=1)
    """At most this many answers per prompt; a sample if there are more."""
    task: Task | None = None
    """Task of trees without one, such as imported trees."""


class StructuredCotSection(Section):
    """Stage `structured_cot`: reasoning from a teacher, a file, a Hub dataset, or trees."""

    from_trees: Annotated[FromTreesSection | None, Mark.COUNTS_WHERE_USED] = None
    """Take the rows from trees ({} for the defaults); `--input trees@X.Y.Z` does the same."""
    path: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """Rows written by hand: JSONL with prompt, task, steps, output. Without it a teacher is asked."""
    hub: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """A published dataset of such rows on the Hub: thu-ml/STAIR-SFT."""
    like: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """Read `path` as a file of that dataset."""
    revision: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """Commit, tag or branch of the published dataset; default: its head."""
    license: Annotated[str | None, Mark.CANNOT_CHANGE_RESULT] = None
    """Licence of the hand-written rows, or of the published dataset, as the Hub names it."""
    teacher: Annotated[Teacher, Mark.COUNTS_WHERE_USED] = Teacher()
    """The model that writes the reasoning."""
    teachers: Annotated[dict[str, Teacher], Mark.COUNTS_WHERE_USED] = {}
    """More teachers by name, for `--teachers a,b`; a name that is not here is a model at the server of `teacher`."""
    judge: Annotated[CotJudge | None, Mark.COUNTS_WHERE_USED] = None
    """The model that picks the better of two candidates, and finds answers that comply with harmful requests."""
    gate: Annotated[GateSection, Mark.COUNTS_WHERE_USED] = GateSection()
    """What an answer has to satisfy."""
    templates: Annotated[TemplatesSection, Mark.COUNTS_WHERE_USED] = TemplatesSection()
    """Your own templates for the teacher."""
    policies: Annotated[dict[str, Path], Mark.COUNTS_AS_INPUT] = {}
    """Files with a policy in plain text, by the category of prompts; `default` is for all others. The policy stands in
    front of what the teacher is asked, and in no row, so that SFT teaches what follows from it (deliberative alignment,
    arXiv 2412.16339)."""
    batch: Annotated[BatchSection, Mark.CANNOT_CHANGE_RESULT] = BatchSection()
    """How `--batch` splits requests."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_RESULT] = "auto"
    """Prompts in flight at most; auto: one is begun whenever the server could take one more request."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.from_trees is not None:
            raise ValueError("give path or from_trees, not both")
        if self.hub is not None and (self.path is not None or self.from_trees is not None):
            raise ValueError("give hub alone, without path and from_trees")
        return self
