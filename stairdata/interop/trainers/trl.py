"""TRL: conversations for its SFT, DPO and reward trainers, and token ids where they read those.

Read in the source of TRL 1.16 and documented at https://huggingface.co/docs/trl/dataset_formats.

- A conversation goes through the chat template, which ends the assistant's turn; a plain text is given the EOS token.
  The DPO trainer has no other form, so it can't go on with a half-written turn: `add_generation_prompt` opens another.
- The SFT trainer leaves rows with `input_ids` and `labels` as they are, the reward trainer those with `chosen_ids` and
  `rejected_ids`.
- Rows longer than `max_length` (1024 where nothing is said) are cut, or dropped by the reward trainer, in silence.
- A column `margin` is taken off the reward trainer's difference, so none is written.
"""

from __future__ import annotations

from functools import partial

from stairdata.examples.conversations import prompt_and_answer, two_sides
from stairdata.examples.reading import AnswerExample, PairExample
from stairdata.interop.trainers import settings
from stairdata.interop.trainers.settings import Stage
from stairdata.interop.trainers.target import Data, Form, Target, as_yaml, by_kind, rendered
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.rendering import Tokenizer

_IGNORED = -100
_TURN = "The chat template ends each answer with the end-of-turn token."
_IDS = "The end-of-turn token stands behind whole answers alone; the trainer adds none to token ids."


def sft_ids(tokenizer: Tokenizer, answer: AnswerExample) -> Row:
    said = rendered(tokenizer, answer.prompt, answer.text)
    end = [said.end_of_turn.token_id] if answer.is_whole else []
    prompt, (text,) = said.pieces(answer.text)
    return {"input_ids": prompt + text + end, "labels": [_IGNORED] * len(prompt) + text + end}


def reward_ids(tokenizer: Tokenizer, pair: PairExample) -> Row:
    said = rendered(tokenizer, pair.prompt, pair.chosen, pair.rejected)
    end = [said.end_of_turn.token_id]
    return {
        "chosen_ids": said.plus(pair.chosen).ids + end * pair.chosen_is_whole,
        "rejected_ids": said.plus(pair.rejected).ids + end * pair.rejected_is_whole,
    }


def _files(stage: Stage, more: Json, data: Data) -> dict[str, str]:
    values = {
        "model_name_or_path": settings.MODEL,
        "datasets": [{"path": data.format, "data_files": data.file}],
        "output_dir": settings.OUTPUT,
        "max_length": data.limit,
        "learning_rate": settings.RATES[stage],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings.ROWS_OF_A_STEP,
    }
    return {"train.yaml": as_yaml(values | more)}


_SFT = Form(
    "prompt, completion: conversations",
    partial(prompt_and_answer, prompt="prompt", text="completion"),
    partial(_files, "sft", {}),
    "trl sft --config train.yaml",
    _TURN,
)
_DPO = Form(
    "prompt, chosen, rejected: conversations",
    two_sides,
    partial(_files, "dpo", {"beta": settings.BETA}),
    "trl dpo --config train.yaml",
    _TURN,
)
_REWARD = Form(_DPO.columns, two_sides, partial(_files, "reward", {}), "trl reward --config train.yaml", _TURN)


def _sft_of_ids(tokenizer: Tokenizer) -> Form:
    row = partial(sft_ids, tokenizer)
    return Form("input_ids, labels: token ids", row, _SFT.files, _SFT.command, _IDS, ends_every_text=False)


def _reward_of_ids(tokenizer: Tokenizer) -> Form:
    row = partial(reward_ids, tokenizer)
    columns = "chosen_ids, rejected_ids: token ids"
    return Form(columns, row, _REWARD.files, _REWARD.command, _IDS, ends_every_text=False)


TRL = Target(
    "trl",
    "TRL",
    "https://huggingface.co/docs/trl/dataset_formats",
    by_kind(_SFT, _DPO, _REWARD),
    {"structured_cot": _sft_of_ids, "responses": _sft_of_ids, "prm_pairs": _reward_of_ids},
)
