"""LLaMA-Factory: conversations, and texts without a template, with an entry for dataset_info.json.

Documented at https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md; read in LLaMA-Factory 0.9.5.

- Rows of pairs serve its stages dpo and rm alike. Its templates end each answer with an end token.
- The template `empty` writes prompt and answer as they stand, with no token around them: with prompts that are
  rendered already, a model goes on with a half-written turn, and whole answers bring their end-of-turn token as text.
- Rows longer than `cutoff_len` (2048 where nothing is said) are cut in silence.
"""

from __future__ import annotations

import json
from functools import partial

from stairdata.examples.conversations import turns, turns_and_two_messages
from stairdata.examples.reading import AnswerExample, PairExample
from stairdata.interop.trainers import settings
from stairdata.interop.trainers.settings import Stage
from stairdata.interop.trainers.target import Data, Form, Target, UnsayableError, as_yaml, by_kind, rendered
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.grammar import TAGS
from stairdata_schemas.rendering import RenderedPrompt, Tokenizer

NAME = "stairdata"
"""Of the entry in dataset_info.json."""
_ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_STAGES: dict[Stage, Json] = {
    # a base model lacks the grammar's tags; actors have them
    "sft": {"stage": "sft", "add_special_tokens": ",".join(TAGS), "resize_vocab": True},
    "dpo": {"stage": "dpo", "pref_beta": settings.BETA},
    "reward": {"stage": "rm"},
}


def sft_text(tokenizer: Tokenizer, answer: AnswerExample) -> Row:
    said = _as_text(tokenizer, answer.prompt, answer.text)
    return {"instruction": said.text, "output": answer.text + said.end_of_turn.text * answer.is_whole}


def pair_text(tokenizer: Tokenizer, pair: PairExample) -> Row:
    """The prompt goes on to the steps that both sides share."""
    said = _as_text(tokenizer, pair.prompt, pair.chosen, pair.rejected)
    end = said.end_of_turn.text
    return {
        "instruction": said.text + pair.chosen[: pair.prefix_length],
        "chosen": pair.chosen[pair.prefix_length :] + end * pair.chosen_is_whole,
        "rejected": pair.rejected[pair.prefix_length :] + end * pair.rejected_is_whole,
    }


def _as_text(tokenizer: Tokenizer, prompt: str, *texts: str) -> RenderedPrompt:
    """Render a prompt that its text says all of.

    Raises:
        UnsayableError: the prompt spells control tokens, which the trainer would take for such.
    """
    said = rendered(tokenizer, prompt, *texts)
    if said.reader is not None:
        raise UnsayableError
    return said


def _files(stage: Stage, entry: Json, more: Json, data: Data) -> dict[str, str]:
    values = {
        **_STAGES[stage],
        "do_train": True,
        "model_name_or_path": settings.MODEL,
        "finetuning_type": "full",
        "dataset": NAME,
        "dataset_dir": ".",
        "cutoff_len": data.limit,
        "output_dir": settings.OUTPUT,
        "learning_rate": settings.RATES[stage],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings.ROWS_OF_A_STEP,
    }
    return {
        "dataset_info.json": json.dumps({NAME: {"file_name": data.file, **entry}}, indent=2) + "\n",
        "train.yaml": as_yaml(values | more),
    }


_TURNS: Json = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _ROLES}
_SIDES = {"chosen": "chosen", "rejected": "rejected"}
_PAIRS: Json = _TURNS | {"ranking": True, "columns": {"messages": "messages", **_SIDES}}
_TEXT: Json = {"columns": {"prompt": "instruction", "response": "output"}}
_TEXT_PAIRS: Json = {"ranking": True, "columns": {"prompt": "instruction", **_SIDES}}
_EMPTY = {"template": "empty"}
_COMMAND = "llamafactory-cli train train.yaml"
_TURN = "The model's template ends each answer with its end token."
_OWN = "Whole answers end with the end-of-turn token, as text; the template `empty` adds none to the others. Keep it."


def _conversations(stage: Stage) -> Form:
    if stage == "sft":
        return Form("messages", turns, partial(_files, stage, _TURNS, {}), _COMMAND, _TURN)
    return Form(
        "messages, chosen, rejected", turns_and_two_messages, partial(_files, stage, _PAIRS, {}), _COMMAND, _TURN
    )


def _texts(stage: Stage, tokenizer: Tokenizer) -> Form:
    if stage == "sft":
        columns, row, entry = "instruction, output: rendered", partial(sft_text, tokenizer), _TEXT
    else:
        columns, row, entry = "instruction, chosen, rejected: rendered", partial(pair_text, tokenizer), _TEXT_PAIRS
    return Form(columns, row, partial(_files, stage, entry, _EMPTY), _COMMAND, _OWN, ends_every_text=False)


LLAMA_FACTORY = Target(
    "llama-factory",
    "LLaMA-Factory",
    "https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md",
    by_kind(_conversations("sft"), _conversations("dpo"), _conversations("reward")),
    by_kind(partial(_texts, "sft"), partial(_texts, "dpo"), partial(_texts, "reward")),
)
