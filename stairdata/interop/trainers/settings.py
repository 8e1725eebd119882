"""What configurations of several trainers say alike; everything else is left to the trainer."""

from __future__ import annotations

from typing import Literal

Stage = Literal["sft", "dpo", "reward"]

MODEL = "MODEL"
"""Stands for the model that is trained: whoever reads the configuration writes their own."""
OUTPUT = "trained"
RATES: dict[Stage, float] = {"sft": 5e-6, "dpo": 5e-7, "reward": 5e-6}
"""Learning rates for all weights: those of the recipes of `stairdata train`."""
ROWS_OF_A_STEP = 128
BETA = 0.2
"""Of DPO, as in the recipe."""
