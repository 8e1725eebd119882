"""What a recipe can say about training; read without torch, so that the command line stays quick."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stairdata_schemas.fingerprints import Mark

Precision = Literal["auto", "bf16", "fp32"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
SaveDtype = Literal["bfloat16", "float32"]
Unusable = Literal["error", "drop"]
DpoLoss = Literal["sigmoid", "ipo", "robust"]
Tracker = Literal["none", "trackio", "tensorboard", "wandb"]
TRAINED_ON = {"sft": "structured_cot", "dpo": "preference_pairs", "prm": "prm_pairs"}
"""The kind of artifact that each method trains on."""
TRAINERS = {"sft": "sft/2", "dpo": "dpo/2", "prm": "prm/2"}
"""The trainer of each method, with a number that is raised when the same settings give other weights."""


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
    batch_size: Annotated[int, Mark.COUNTS_WHERE_USED] = Field(default=4, ge=1)
    """Rows (or pairs) in one forward pass of one process. What counts is the product of this, `gradient_accumulation`
    and the number of processes: the rows of an optimizer step."""
    gradient_accumulation: Annotated[int, Mark.COUNTS_WHERE_USED] = Field(default=32, ge=1)
    """Forward passes of one process in one optimizer step."""
    max_length: int = Field(default=2048, ge=8)
    """Longest sequence in tokens, prompt and end of turn included; nothing is cut."""
    too_long: Unusable = "error"
    """What becomes of longer rows: an error, or they are left out, counted, and listed in training.json."""
    bad_rows: Unusable = "error"
    """The same for rows that would teach something wrong: a control token inside a step, two sides of the same ids."""
    max_dropped: Annotated[float, Mark.CANNOT_CHANGE_RESULT] = Field(default=0.05, ge=0, le=1)
    """Largest share of rows that may be left out; more is an error."""
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
    save_dtype: SaveDtype = "bfloat16"
    """Precision of the saved weights. bfloat16 takes half the space, and can lose what a short DPO has changed;
    training.json says how much is left."""
    gradient_checkpointing: Annotated[bool, Mark.CANNOT_CHANGE_RESULT] = True
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    checkpoint_steps: Annotated[int, Mark.CANNOT_CHANGE_RESULT] = Field(default=500, ge=1)
    """Steps between checkpoints, from which a killed run continues."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    report_to: Annotated[Tracker, Mark.CANNOT_CHANGE_RESULT] = "none"
    """Where metrics go besides training.json; the package of that name has to be installed."""


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on `structured_cot`."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the rows."""
    reasoning: Annotated[bool, Mark.COUNTS_UNLESS_DEFAULT] = True
    """false: train on the final answers alone, as ordinary chat answers without steps or tags. A model for comparison,
    which can't grow trees."""


class DpoConfig(TrainingConfig):
    """Step-level DPO on `preference_pairs`; the reference is the model before training."""

    learning_rate: float = Field(default=5e-7, gt=0)
    """Highest learning rate of AdamW."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held close to the reference model; with `ipo` the paper's tau (arXiv 2310.12036)."""
    loss: DpoLoss = "sigmoid"
    """`sigmoid` is DPO's own (arXiv 2305.18290), `ipo` the squared loss of arXiv 2310.12036, normalised by length, and
    `robust` that for labels of which a share is wrong (arXiv 2403.00409)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be the wrong way round; for `robust`."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the likelihood of the chosen text beside the preference loss, which keeps it from falling."""

    @model_validator(mode="after")
    def _smoothing_has_its_loss(self) -> Self:
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing is for loss: robust, and loss is {self.loss}; leave it out or change it")
        return self


class PrmConfig(TrainingConfig):
    """The process reward model, trained on `prm_pairs`."""

    learning_rate: float = Field(default=5e-6, gt=0)
    """Highest learning rate of AdamW."""
