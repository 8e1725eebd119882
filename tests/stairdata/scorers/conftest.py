"""A client of the stub that scores, and a tiny reward model with the shared tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from stairdata.llm.budget import Budget
from stairdata.recipe import Recipe
from stairdata.scorers.in_process import StepModel
from stairdata.scorers.opening import open_scorer
from stairdata.search.scoring import Scorer

if TYPE_CHECKING:
    from tests.conftest import StubServer

T = TypeVar("T")


@pytest.fixture(scope="session")
def prm_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A reward model of two layers with random weights, whose scores tell texts apart."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("prm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,  # heads of 64, a size that vLLM's CPU kernels have
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
        num_labels=1,
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def load_prm(folder: str) -> StepModel:
    from stairdata_training.scoring import PrmScorer

    return PrmScorer.load(folder)


@pytest.fixture
def with_scorer(stub_llm: StubServer, waits: list[float], tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Any]:
    """Run a coroutine function on the scorer of a recipe; without `prm`, the stub's."""

    def run(
        work: Callable[[Scorer], Awaitable[T]],
        prm: Any = None,
        budget: Budget | None = None,
        load: Callable[[str], StepModel] = load_prm,
        **server: Any,
    ) -> T:
        at_stub = {"base_url": stub_llm.base_url, "model": "actor", "tokenizer": str(tokenizer_folder), "retries": 2}
        recipe = Recipe.model_validate({"responses": {"prm": prm or at_stub | server}})

        async def inside() -> T:
            async with open_scorer(recipe, load, tmp_path, budget or Budget(), lambda *_: None) as scorer:
                return await work(scorer)

        return asyncio.run(inside())

    return run
