"""The recipe of the data stages, all sections together."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stairdata.recipe.endpoint import Endpoint
from stairdata.recipe.evaluations import EvaluationsSection
from stairdata.recipe.pairs import PreferencePairsSection, PrmPairsSection
from stairdata.recipe.prompts import PromptsSection
from stairdata.recipe.responses import ResponsesSection
from stairdata.recipe.section import MOST, Section, Share
from stairdata.recipe.structured_cot import StructuredCotSection
from stairdata.recipe.trees import TreesSection
from stairdata_schemas.fingerprints import Mark


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

    def tokenizer_or_default(self, named: str | None) -> str | None:
        """Return the tokenizer that a section names, else the actor's; None where the recipe has neither."""
        return named or self.actor.tokenizer or self.actor.path
