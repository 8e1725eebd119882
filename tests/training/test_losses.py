"""The losses that TRL computes for us, beside plain functions of log-probabilities; and what we use of TRL's inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from stairdata_schemas.rendering import encode_prompt
from stairdata_training.config import DpoConfig
from stairdata_training.dpo import DPO, DpoTrainer
from stairdata_training.prm import PRM, PrmTrainer
from stairdata_training.sft import SftTrainer
from stairdata_training.trainers.method import prepare_trainer

Rows = list[dict[str, Any]]
BETA = 0.3


def config(**changes: Any) -> DpoConfig:
    settings = {
        "batch_size": 4, "gradient_accumulation": 1, "max_length": 400, "precision": "fp32", "beta": BETA,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return DpoConfig(**(settings | changes))


def answer_logp(network: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Sum the log-probabilities of an answer's ids, one sequence at a time and without padding."""
    logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    total: torch.Tensor = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum()
    return total


def by_hand(kind: str, policy: Any, reference: Any, rows: Rows, **options: float) -> torch.Tensor:
    """Compute the mean loss of pairs as the papers write it."""
    each = []
    for row in rows:
        sides = [row["chosen_ids"], row["rejected_ids"]]
        ours = [answer_logp(policy, row["prompt_ids"], side) for side in sides]
        theirs = [answer_logp(reference, row["prompt_ids"], side) for side in sides]
        ratios = [a - b for a, b in zip(ours, theirs, strict=True)]
        difference = BETA * (ratios[0] - ratios[1])
        if kind == "ipo":
            each.append((ratios[0] / len(sides[0]) - ratios[1] / len(sides[1]) - 1 / (2 * BETA)) ** 2)
        else:
            share = options.get("label_smoothing", 0.0)
            loss = -(1 - share) * logsigmoid(difference) + share * logsigmoid(-difference)
            each.append(loss / (1 - 2 * share))
    return torch.stack(each).mean()


@pytest.mark.parametrize(("kind", "options"), [("sigmoid", {}), ("ipo", {}), ("robust", {"label_smoothing": 0.2})])
def test_the_loss_is_that_of_the_papers(
    kind: str, options: dict[str, float], actors: dict[str, Path], pair_rows: Rows, tmp_path: Path
) -> None:
    import copy

    prepared = prepare_trainer(
        DPO, Dataset.from_list(pair_rows), actors["chatml"], config(loss=kind, **options), tmp_path
    )
    trainer = prepared.trainer
    reference = copy.deepcopy(trainer.model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in trainer.model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    batch = next(iter(trainer.get_train_dataloader()))
    rows = [prepared.rows.ids[index] for index in range(4)]
    with torch.no_grad():
        theirs = trainer._compute_loss(trainer.model, batch, False)
        ours = by_hand(kind, trainer.model, reference, rows, **options)
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)
    assert abs(theirs.item() - 0.6931) > 1e-3


def test_the_likelihood_of_the_chosen_text_is_added(actors: dict[str, Path], pair_rows: Rows, tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 0.5, 1.0):
        folder = tmp_path / str(weight)
        folder.mkdir()
        trainer = prepare_trainer(
            DPO, Dataset.from_list(pair_rows), actors["chatml"], config(sft_weight=weight), folder
        ).trainer
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            losses.append(trainer._compute_loss(trainer.model, batch, False).item())
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0] + 0.1


def test_the_loss_of_whole_texts_is_that_of_the_steps_after_the_shared_ones(
    actors: dict[str, Path], pair_rows: Rows, tmp_path: Path
) -> None:
    losses = []
    for cut in (True, False):
        rows = [row if cut else row | {"prefix_length": 0} for row in pair_rows]
        folder = tmp_path / str(cut)
        folder.mkdir()
        trainer = prepare_trainer(DPO, Dataset.from_list(rows), actors["chatml"], config(), folder).trainer
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for weight in trainer.model.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
            total = [trainer._compute_loss(trainer.model, batch, False) for batch in trainer.get_train_dataloader()]
        losses.append(torch.stack(total).mean().item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert abs(losses[0] - 0.6931) > 1e-3


def test_the_reference_sees_the_batches_of_the_training(
    actors: dict[str, Path], pair_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[int]]] = []
    compute = DpoTrainer.compute_ref_log_probs

    def noted(self: Any, model: Any, inputs: Any) -> Any:
        seen.append(inputs["input_ids"].tolist())
        return compute(self, model, inputs)

    monkeypatch.setattr(DpoTrainer, "compute_ref_log_probs", noted)
    trainer = prepare_trainer(
        DPO, Dataset.from_list(pair_rows), actors["chatml"], config(), tmp_path / "out.partial"
    ).trainer
    assert [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()] == seen


def test_what_is_used_of_trl_inside_is_there(actors: dict[str, Path], pair_rows: Rows, tmp_path: Path) -> None:
    """TRL is pinned to a minor version; where this fails after a change of the pin, look at each use."""
    import trl
    from trl.trainer import utils

    assert trl.__version__.startswith("1.16.")
    assert hasattr(utils, "FusedCausalLMOutput")
    assert hasattr(utils, "add_fused_lm_head")
    for own in (SftTrainer, DpoTrainer, PrmTrainer):
        base = own.__mro__[2]
        for name in ("_send_telemetry", "create_model_card", "_prepare_dataset", "_get_train_sampler"):
            assert callable(getattr(base, name)), (base, name)
    for name in ("_precompute_ref_logps", "compute_ref_log_probs", "_compute_loss"):
        assert callable(getattr(DpoTrainer.__mro__[2], name))
    for method, folder in ((DPO, tmp_path / "dpo"), (PRM, tmp_path / "prm")):
        folder.mkdir()
        trainer = prepare_trainer(
            method, Dataset.from_list(pair_rows), actors["chatml"], config(seed=2), folder
        ).trainer
        assert trainer._total_train_tokens == 0
        assert not hasattr(trainer, "_precompute_model_hash") or trainer._precompute_model_hash
    ids = encode_prompt(trainer.processing_class, "hi")
    assert trainer.model(torch.tensor([ids])).logits.shape == (1, 1)
