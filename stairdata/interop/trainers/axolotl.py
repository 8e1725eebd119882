"""axolotl: conversations for SFT, DPO and reward models, with its YAML.

Read in axolotl 0.19, documented at https://github.com/axolotl-ai-cloud/axolotl/blob/main/docs/dataset-formats/ (SFT),
docs/rlhf.qmd (`chat_template.default`) and docs/reward_modelling.qmd (`bradley_terry.chat_template`) there.

- The chat template ends each answer, and TRL's trainers below it add EOS to plain texts: a half-written turn can't be
  gone on with. For single steps there is `stepwise`.
- Rows of a reward model are plain texts, `system` among them: the loader asks for that column, takes a null for none,
  and makes an empty system turn of an empty text, which `drop_system_message` takes away again.
- SFT trains a turn's end only where that token is the tokenizer's EOS, or is named in `eot_tokens`.
- Rows longer than `sequence_len` are dropped where `excess_length_strategy` is not `raise`.
"""

from __future__ import annotations

from functools import partial

from stairdata.examples.conversations import turns, turns_and_two_messages
from stairdata.examples.reading import PairExample
from stairdata.interop.trainers import settings
from stairdata.interop.trainers.settings import Stage
from stairdata.interop.trainers.target import Data, Form, Target, as_yaml, by_kind
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.grammar import TAGS

_TYPES: dict[Stage, str] = {
    "sft": "chat_template",
    "dpo": "chat_template.default",
    "reward": "bradley_terry.chat_template",
}
_SETTINGS: dict[Stage, Json] = {
    "sft": {"tokens": list(TAGS)},  # a base model lacks the grammar's tags; actors have them
    "dpo": {"rl": "dpo", "rl_beta": settings.BETA},
    "reward": {"reward_model": True, "model_type": "AutoModelForSequenceClassification", "num_labels": 1},
}


def reward_row(pair: PairExample) -> Row:
    return {"system": "", "input": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _files(stage: Stage, data: Data) -> dict[str, str]:
    source: Json = {"path": data.file, "ds_type": data.format, "split": "train", "type": _TYPES[stage]}
    source |= {"drop_system_message": True} if stage == "reward" else {}
    values = {
        "base_model": settings.MODEL,
        **_SETTINGS[stage],
        "chat_template": "tokenizer_default",
        "datasets": [source],
        "sequence_len": data.limit,
        "excess_length_strategy": "raise",
        "learning_rate": settings.RATES[stage],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": settings.ROWS_OF_A_STEP,
        "num_epochs": 1,
        "output_dir": settings.OUTPUT,
    }
    return {"axolotl.yaml": as_yaml(values)}


_COMMAND = "axolotl train axolotl.yaml"
_ENDS = "The chat template ends each answer with the end-of-turn token."
_TRAINED = f"{_ENDS[:-1]}; where that is not the EOS token, name it in `eot_tokens`, or SFT trains no end."
_SFT = Form("messages", turns, partial(_files, "sft"), _COMMAND, _TRAINED)
AXOLOTL = Target(
    "axolotl",
    "axolotl",
    "https://github.com/axolotl-ai-cloud/axolotl/tree/main/docs/dataset-formats",
    by_kind(
        _SFT,
        Form("messages, chosen, rejected", turns_and_two_messages, partial(_files, "dpo"), _COMMAND, _ENDS),
        Form("system, input, chosen, rejected", reward_row, partial(_files, "reward"), _COMMAND, _ENDS),
    ),
)
