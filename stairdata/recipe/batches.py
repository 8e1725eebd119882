"""How `--batch` asks, at any stage that takes it."""

from __future__ import annotations

from pydantic import Field

from stairdata.recipe.section import Section


class BatchSection(Section):
    """How `--batch` splits requests; the defaults are the limits of OpenAI's Batch API."""

    max_requests: int = Field(50_000, ge=1)
    """Maximum number of requests in a batch."""
    max_bytes: int = Field(200_000_000, ge=1000)
    """Maximum bytes of a batch's file."""
    max_enqueued_tokens: int | None = Field(None, ge=1)
    """Maximum prompt tokens of all batches in progress: the account's batch queue limit for the model. Requests that
    exceed it wait for the next `--batch`."""
    completion_window: str = "24h"
    """The time in which the server is to answer, in its own words; OpenAI's knows no other."""


class EvaluationBatchSection(BatchSection):
    """How `--batch` splits requests, and who is asked in batches."""

    answers: bool = False
    """Ask the tested models in batches, too. Default: the judge alone; tested models and the attacker are asked live
    while `--batch` submits."""
