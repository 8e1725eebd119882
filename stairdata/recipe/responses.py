"""Stage `responses`: answers of the actor, and test-time search."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from stairdata.recipe.batches import BatchSection
from stairdata.recipe.endpoint import ModelServer
from stairdata.recipe.section import UNNAMED, Concurrency, Sampling
from stairdata_schemas.fingerprints import Mark

BEAM_KEYS = {"width", "expansions", "max_depth", "diverse", "step_tokens"}


class PrmEndpoint(ModelServer):
    """A process reward model on a server: one that is started for the duration of a build, or one by its URL."""

    serve: Annotated[bool, Mark.CANNOT_CHANGE_RESULT] = False
    """Start a server of the model in `path`. A path that is not to be served stands alone: `prm: FOLDER`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the model's weights and arithmetic; with base_url the one that its server was started with.
    Scores of bfloat16 are up to 0.06 off, and may choose another answer."""

    @model_validator(mode="after")
    def _is_told_apart(self) -> Self:
        if self.base_url is not None:
            absent = [name for name in ("model", "tokenizer") if getattr(self, name) is None]
            if absent:
                raise ValueError(f"base_url needs {' and '.join(absent)}, too")
            if self.serve or self.gpu_memory is not None:
                raise ValueError("serve and gpu_memory are for a model that is served here; leave out base_url or them")
        elif self.path is None:
            raise ValueError("give path with serve: true, or base_url with model and tokenizer")
        elif not self.serve:
            raise ValueError("a path is served where serve: true is set; for a model in this process write prm: FOLDER")
        return self


def _form(value: Any) -> str:
    return UNNAMED if isinstance(value, dict | PrmEndpoint) else "folder"


Prm = Annotated[Annotated[str, Tag("folder")] | Annotated[PrmEndpoint, Tag(UNNAMED)], Discriminator(_form)]
"""A folder, whose model runs in this process, or a server."""


class ResponsesSection(Sampling):
    """Stage `responses`: answers of the actor, and test-time search."""

    method: Literal["sample", "best_of_n", "beam"] = "sample"
    """sample: n answers, of which the first is kept. best_of_n: n answers, of which the one with the best PRM score is
    kept. beam: the answer is searched step by step, by the scores of its beginnings."""
    n: int = Field(1, ge=1)
    """Answers per prompt, of sample and best_of_n."""
    width: Annotated[int, Mark.COUNTS_WHERE_USED] = Field(4, ge=1)
    """Beam search: beginnings of answers that go on at each level, and answers at the end, both at most."""
    expansions: Annotated[int, Mark.COUNTS_WHERE_USED] = Field(4, ge=1)
    """Beam search: next steps sampled for each of them; at the root width times as many."""
    max_depth: Annotated[int, Mark.COUNTS_WHERE_USED] = Field(7, ge=1)
    """Beam search: steps after which an answer is no longer searched but written to its end."""
    diverse: Annotated[bool, Mark.COUNTS_WHERE_USED] = False
    """Beam search: width separate subtrees, each of which goes on with its best step (DVTS)."""
    step_tokens: Annotated[int, Mark.COUNTS_WHERE_USED] = Field(2048, ge=1)
    """Beam search: tokens of one step, within those of the answer; a step cut there is dropped and counted."""
    prm: Annotated[Prm | None, Mark.COUNTS_AS_MODEL] = None
    """The process reward model that scores: a folder, whose model runs in this process; or a server, by `{base_url,
    model, tokenizer, api_key_env}`; or `{path, serve: true}`, which is served for the duration of the build."""
    max_tokens: int = Field(2048, ge=1)
    """Tokens of one answer."""
    batch: Annotated[BatchSection, Mark.CANNOT_CHANGE_RESULT] = BatchSection()
    """How `--batch` splits requests."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_RESULT] = "auto"
    """Prompts in flight at most; auto: one is begun whenever the server could take one more request."""

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if self.method != "sample" and self.prm is None:
            raise ValueError(f"method {self.method} needs a prm, the folder or server of a process reward model")
        if self.method == "beam" and self.n != 1:
            raise ValueError("n counts for sample and best_of_n; a beam search has as many answers as its width")
        return self
