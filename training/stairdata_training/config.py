"""What a recipe can say about training; read without torch, so that the command line stays quick."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from stairdata_schemas.fingerprints import Mark

Precision = Literal["auto", "bf16", "fp32"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
TRAINED_ON = {"sft": "structured_cot", "dpo": "preference_pairs", "prm": "prm_pairs"}
"""The kind of artifact that each method trains on."""


class LoraConfig(BaseModel):
    """Low-rank adapters instead of all weights; they are merged into the model before it is saved."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    rank: int = Field(default=16, ge=1)
    """Rank of the two factors."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input; DPO and PRM training switch all dropout off."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get adapters; `all-linear` takes every linear layer but the head."""


class TrainingConfig(BaseModel):
    """What the three trainings have in common.

    A field enters the fingerprint of a training unless it is marked.
    """

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, coerce_numbers_to_str=True
    )

    model: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Model folder or Hub id to start from; without it, pass --model."""
    output: Annotated[str | None, Mark.CANNOT_CHANGE_RESULT] = None
    """Folder for the finished model; without it, pass --output."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says."""
    max_rows: int | None = Field(default=None, ge=1)
    """Train on a seeded sample of this many rows; all of them if unset."""
    learning_rate: float = Field(default=5e-6, gt=0)
    """Highest learning rate of AdamW."""
    batch_size: int = Field(default=4, ge=1)
    """Rows (or pairs) in one forward pass."""
    gradient_accumulation: int = Field(default=32, ge=1)
    """Forward passes in one optimizer step."""
    max_length: int = Field(default=2048, ge=8)
    """Longest sequence in tokens, prompt included; a longer row is an error, nothing is cut."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    scheduler: Scheduler = "cosine"
    """How the learning rate falls after that."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    seed: int = Field(default=42, ge=0)
    """Decides the sample, the order of rows, and new weights."""
    precision: Precision = "auto"
    """Arithmetic; weights are kept in 32 bits in any case. `auto` is bf16 where the processor has it."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    checkpoint_steps: Annotated[int, Mark.CANNOT_CHANGE_RESULT] = Field(default=500, ge=1)
    """Steps between checkpoints, from which a killed run continues."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on `structured_cot`."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the rows."""


class DpoConfig(TrainingConfig):
    """Step-level DPO on `preference_pairs`; the reference is the model before training."""

    learning_rate: float = Field(default=5e-7, gt=0)
    """Highest learning rate of AdamW."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held close to the reference model."""


class PrmConfig(TrainingConfig):
    """The process reward model, trained on `prm_pairs`."""

    learning_rate: float = Field(default=5e-6, gt=0)
    """Highest learning rate of AdamW."""
