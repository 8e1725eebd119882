"""The recipe of the data stages, all sections together."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from stairdata.recipe.endpoint import MOST_GPU_MEMORY, Endpoint
from stairdata.recipe.evaluations import EvaluationsSection
from stairdata.recipe.pairs import PreferencePairsSection, PrmPairsSection
from stairdata.recipe.prompts import PromptsSection
from stairdata.recipe.responses import PrmEndpoint, ResponsesSection
from stairdata.recipe.section import MOST, Section, Share
from stairdata.recipe.structured_cot import StructuredCotSection
from stairdata.recipe.trees import TreesSection
from stairdata_schemas.fingerprints import Mark

ACTOR_SHARE = 0.55
PRM_SHARE = 0.35
"""Of a GPU's memory, where two models are served on it and the recipe says nothing. Both may be of one size; the actor
has many sequences under way at a time and keeps what it has computed of each."""
LEAST_GPU_MEMORY = 0.05
ROUNDING = 1e-9


class Price(Section):
    """What a model costs, in any one currency."""

    input: float = Field(0, ge=0)
    """Price of a million prompt tokens; 0 is free."""
    output: float = Field(0, ge=0)
    """Price of a million completion tokens; 0 is free."""
    batch: Share = 0.5
    """Share of these prices that the Batch API charges."""


class Recipe(Section):
    """All sections of the data stages."""

    seed: int = Field(42, ge=0, le=MOST)
    """Fixes all randomness in stairdata."""
    prompts: PromptsSection = PromptsSection()
    structured_cot: StructuredCotSection = StructuredCotSection()
    actor: Endpoint = Endpoint()
    trees: TreesSection = TreesSection()
    preference_pairs: PreferencePairsSection = PreferencePairsSection()
    prm_pairs: PrmPairsSection = PrmPairsSection()
    responses: ResponsesSection = ResponsesSection()
    evaluations: EvaluationsSection = EvaluationsSection()
    prices: Annotated[dict[str, Price], Mark.CANNOT_CHANGE_RESULT] = {}
    """Price of each model, by its name (of a served folder: the folder's last part). Needed for --max-cost."""

    @model_validator(mode="after")
    def _actor_is_asked_by_completions(self) -> Self:
        if self.actor.reasoning_effort is not None:
            raise ValueError("actor.reasoning_effort goes with chats, and the actor's prompts are rendered here")
        return self

    @model_validator(mode="after")
    def _models_fit_on_one_gpu(self) -> Self:
        prm = self.responses.prm
        if self.actor.path is not None and isinstance(prm, PrmEndpoint) and prm.path is not None:
            given = self.actor.gpu_memory, prm.gpu_memory
            if sum(share or LEAST_GPU_MEMORY for share in given) > MOST_GPU_MEMORY + ROUNDING:
                shown = " and ".join("nothing" if share is None else f"{share:g}" for share in given)
                raise ValueError(
                    f"actor.gpu_memory and responses.prm.gpu_memory are {shown}; the two models are served on one GPU, "
                    f"and can have {MOST_GPU_MEMORY:g} of its memory together"
                )
        return self

    def gpu_shares(self) -> tuple[float | None, float | None]:
        """Return the shares of a GPU's memory that actor and process reward model are served with; None is vLLM's own.

        Where both are served here, one that has no share gets what the other leaves of 0.9; beside a process reward
        model in this process the actor gets no more than beside a served one.
        """
        actor, prm = self.actor.gpu_memory, self.responses.prm
        if isinstance(prm, str):
            return actor or ACTOR_SHARE, None
        if prm is None or prm.path is None or self.actor.path is None:
            return actor, prm.gpu_memory if prm is not None else None
        actor = actor or (_rest(prm.gpu_memory) if prm.gpu_memory else ACTOR_SHARE)
        return actor, prm.gpu_memory or _rest(actor)

    def beside_prm(self, model: Endpoint) -> Endpoint:
        """Return a model that answers, the actor or another one, with the share of the GPU's memory that is its own."""
        share, _ = self.model_copy(update={"actor": model}).gpu_shares()
        return model.model_copy(update={"gpu_memory": share})

    def tokenizer_or_default(self, named: str | None) -> str | None:
        """Return the tokenizer that a section names, else the actor's; None where the recipe has neither."""
        return named or self.actor.tokenizer or self.actor.path


def _rest(share: float) -> float:
    return max(LEAST_GPU_MEMORY, round(ACTOR_SHARE + PRM_SHARE - share, 3))
