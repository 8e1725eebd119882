"""Scores of steps: one forward pass says what a pass for each beginning says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas.errors import ModelError
from stairdata_schemas.grammar import split_steps
from stairdata_schemas.rendering import encode_prompt, end_of_turn, step_ids
from stairdata_training.inference.forward import pad, rewards
from stairdata_training.models import load_reward_model
from stairdata_training.scoring import PrmScorer
from tests.schemas.tokenizers import FAMILIES

STEP = "<|Reasoning_step|>\nTitle: A:\n{}\n<|/Reasoning_step|>"
OUTPUT = "\n\n<|Output|>\nFinal Answer:\n{}\n<|/Output|>"
WHOLE = STEP.format("ab") + "\n\n" + STEP.format("cd, ça 🙂") + OUTPUT.format("yes")
ITEMS = [
    ("hi", WHOLE, True),
    ("hi", STEP.format("ab" * 40) + "\n\n<|Reasoning_step|>\nTitle: cut", False),
    ("hi <|im_end|> there", WHOLE, True),
    ("hi", "I can't help.", True),
    ("hi", "", True),
    ("hi", "", False),
    ("hi", STEP.format("x"), True),
    ("hi", "no tag <|/Reasoning_step|> and <|/Output|> more", False),
]


def alone(scorer: PrmScorer, ids: list[int]) -> float:
    """The score of one sequence as transformers gives it, which reads the last token that is not the pad token."""
    network = scorer._network
    network.config.pad_token_id = scorer.tokenizer.pad_token_id
    (value,) = rewards(network)(pad([ids], scorer.tokenizer.pad_token_id))
    return value


def beginnings(tokenizer: Any, prompt: str, text: str, *, is_complete: bool) -> list[list[int]]:
    """What `step_ids` gives, without any of its ways to save work."""
    steps = split_steps(text) or [""]
    found = [encode_prompt(tokenizer, prompt, "".join(steps[: number + 1])) for number in range(len(steps))]
    return [*found[:-1], found[-1] + [end_of_turn(tokenizer).token_id] * is_complete]


def test_one_pass_scores_every_step(prms: dict[str, Path], family: str) -> None:
    scorer = PrmScorer.load(prms[family])
    found = scorer.score_steps(ITEMS, batch_size=3)
    assert found.sequences == [1] * len(ITEMS)
    assert [len(values) for values in found.values] == [3, 2, 3, 1, 1, 1, 1, 3]
    read = [beginnings(scorer.tokenizer, prompt, text, is_complete=whole) for prompt, text, whole in ITEMS]
    assert found.tokens == [len(each[-1]) for each in read]
    for values, each in zip(found.values, read, strict=True):
        assert values == pytest.approx([alone(scorer, ids) for ids in each], abs=4e-6)
    assert [values[-1] for values in found.values] == pytest.approx(scorer.score(ITEMS), abs=4e-6)
    assert len({round(value, 5) for values in found.values for value in values}) > 10, "the scores tell texts apart"


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(["<|Reasoning_step|>", "<|/Reasoning_step|>", "<|/Output|>", "\n\n", "a b", "é"])),
    st.booleans(),
)
def test_steps_are_read_as_by_themselves(name: str, parts: list[str], is_complete: bool) -> None:
    tokenizer, text = FAMILIES[name], "".join(parts)
    found = step_ids(tokenizer, "hi", text, is_complete=is_complete)
    assert found == beginnings(tokenizer, "hi", text, is_complete=is_complete)


def test_beginnings_that_are_not_part_of_each_other_are_read_one_by_one(prms: dict[str, Path]) -> None:
    """As with a tokenizer that joins what stands on both sides of a step's end."""
    scorer = PrmScorer.load(prms["chatml"])
    nested, parted = [[5, 6], [5, 6, 7]], [[5, 6, 8], [5, 6, 9, 7]]
    found = scorer.step_rewards([nested, parted])
    assert (found.sequences, found.tokens) == ([1, 2], [3, 3 + 4])
    for values, each in zip(found.values, (nested, parted), strict=True):
        assert values == pytest.approx([alone(scorer, ids) for ids in each], abs=4e-6)


def test_nothing_to_score(prms: dict[str, Path]) -> None:
    assert PrmScorer.load(prms["chatml"]).score_steps([]) == ([], [], [])


def test_padding_that_is_an_end_of_turn_hides_no_token(prms: dict[str, Path]) -> None:
    """transformers would read the token in front of it."""
    scorer = PrmScorer.load(prms["chatml"])
    expected = scorer.score(ITEMS)
    scorer.tokenizer.pad_token = end_of_turn(scorer.tokenizer).text
    assert scorer.score(ITEMS) == pytest.approx(expected, abs=4e-6)


TOO_LITTLE = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", TOO_LITTLE, ids=lambda error: type(error).__name__)
def test_too_little_memory_is_one_message(
    error: Exception, prms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = r"too little memory for the reward model in this process: .*actor\.gpu_memory.*serve: true.*finished work"

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("transformers.AutoModelForSequenceClassification.from_pretrained", fail)
        with pytest.raises(ModelError, match=words):
            PrmScorer.load(prms["chatml"])
    scorer = PrmScorer.load(prms["chatml"])
    monkeypatch.setattr(scorer._network.base_model, "forward", fail)
    with pytest.raises(ModelError, match=words):
        scorer.score(ITEMS)


def test_an_error_that_is_no_lack_of_memory_stays(prms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = PrmScorer.load(prms["chatml"])
    monkeypatch.setattr(scorer._network.base_model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scorer.score(ITEMS)


def edited(folder: Path, prm: Path, **changes: Any) -> Path:
    network = load_reward_model(prm)
    for name, value in changes.items():
        setattr(network.config, name, value)
    if "num_labels" in changes:
        network.score = torch.nn.Linear(64, changes["num_labels"], bias=False)
    network.save_pretrained(str(folder))
    return folder


def test_a_classifier_of_several_labels_is_refused(prms: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(tmp_path / "prm", prms["chatml"], num_labels=2)
    PrmScorer.load(prms["chatml"]).tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"prm' is a classifier of 2 labels, and a process reward model has one"):
        PrmScorer.load(folder)


def test_a_tokenizer_without_the_tags_is_refused(
    prms: dict[str, Path], models: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = edited(tmp_path / "prm", prms["chatml"])
    AutoTokenizer.from_pretrained(models["chatml"]).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"prm' has no single token for <\|Reasoning_step\|>"):
        PrmScorer.load(folder)


def test_a_tokenizer_of_a_larger_model_is_refused(prms: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(tmp_path / "prm", prms["chatml"])
    tokenizer = PrmScorer.load(prms["chatml"]).tokenizer
    tokenizer.add_tokens([f"<word {number}>" for number in range(100)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"has \d+ tokens, and the model knows \d+: it is another model's"):
        PrmScorer.load(folder)


@pytest.mark.parametrize("content", ["[]", "{", '{"architectures": 5}', '{"id2label": 5, "architectures": []}'])
def test_a_configuration_of_another_shape(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json of .* can't be read"):
        load_reward_model(tmp_path)


def test_the_context_is_the_models(prms: dict[str, Path]) -> None:
    config = json.loads((prms["chatml"] / "config.json").read_text())
    assert PrmScorer.load(prms["chatml"]).context == config["max_position_embeddings"]
