"""The whole recipe: the sections of the data stages and those of training."""

from __future__ import annotations

from stairdata.recipe import Recipe
from stairdata_training.config import DpoConfig, PrmConfig, SftConfig


class FullRecipe(Recipe):
    """One YAML file, one section a stage."""

    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    prm: PrmConfig = PrmConfig()
