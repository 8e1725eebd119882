"""Stage `evaluations`: which models are tested on which benchmarks, under which attacks, and who judges."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import model_validator

from stairdata.recipe.attacks import AttacksSection
from stairdata.recipe.batches import EvaluationBatchSection
from stairdata.recipe.benchmarks import BenchmarkSection
from stairdata.recipe.endpoint import Endpoint
from stairdata.recipe.judges import EvaluationJudge
from stairdata.recipe.section import Concurrency, Section
from stairdata_schemas.fingerprints import Mark


class EvaluatedModel(Endpoint):
    """A model that answers: a folder or Hub id, or a server by its URL."""

    api: Literal["auto", "completions", "chat"] = "auto"
    """How it is asked. completions: its prompt is rendered here, with its tokenizer. chat: its server applies the
    template; such a model can't be searched, nor attacked by `prefill`. auto: chat where base_url is given without a
    tokenizer, else completions."""

    @property
    def is_chat(self) -> bool:
        """Whether it is asked by chat alone."""
        return self.api == "chat" or (self.api == "auto" and self.base_url is not None and self.tokenizer is None)

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.path is None and self.base_url is None:
            raise ValueError("give path (a model) or base_url (a server)")
        if self.base_url is not None and self.model is None:
            raise ValueError("base_url needs model: the server's name for it")
        if self.api == "completions" and self.base_url is not None and self.tokenizer is None:
            raise ValueError("api completions needs tokenizer: the folder or Hub id whose template renders prompts")
        if self.reasoning_effort is not None and not self.is_chat:
            raise ValueError("reasoning_effort goes with api chat: by completions, prompts are rendered here")
        return self


class EvaluationsSection(Section):
    """Stage `evaluations`: answers to benchmarks, with and without attacks, and judgements of them."""

    benchmarks: list[BenchmarkSection] = []
    """The prompts, and how answers are scored. Empty, with a responses artifact as input: all its prompts, scored by
    refusals."""
    attacks: AttacksSection = AttacksSection()
    """Each prompt is answered under each attack; given a responses artifact only none is possible."""
    judge: EvaluationJudge = EvaluationJudge()
    """Who judges."""
    with_actor: bool = True
    """Test the recipe's actor, where it has one."""
    models: list[EvaluatedModel] = []
    """Further models to be tested, one after the other; they answer by the settings of `responses`."""
    exclude_seen: bool = False
    """Leave out prompts that are also in the training data of a tested model, or in what that was made from; either way
    the manifest counts and names them. Known of model folders on this machine."""
    batch: Annotated[EvaluationBatchSection, Mark.CANNOT_CHANGE_RESULT] = EvaluationBatchSection()
    """How `--batch` splits requests, and who is asked in batches."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_RESULT] = "auto"
    """Answers in flight at most, of those being judged, too; auto: one is begun whenever the server could take one more
    request."""
