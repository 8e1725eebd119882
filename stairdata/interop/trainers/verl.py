"""verl: conversations in parquet for its SFT trainer, with the command that reads them.

Read in verl 0.9.1: https://github.com/volcengine/verl/blob/main/verl/utils/dataset/multiturn_sft_dataset.py and
verl/trainer/config/sft_trainer_engine.yaml there.

- It has no trainer for pairs: DPO and reward models are trained elsewhere.
- Each message goes through the chat template by itself, which ends the assistant's turn.
- Rows longer than `data.max_length` are an error with `data.truncation=error`.
"""

from __future__ import annotations

import shlex

from stairdata.examples.conversations import turns
from stairdata.interop.trainers import settings
from stairdata.interop.trainers.target import Data, Form, Target


def _files(data: Data) -> dict[str, str]:
    words = ["torchrun", "--standalone", "--nnodes=1", "--nproc_per_node=1", "-m", "verl.trainer.sft_trainer"]
    values = {
        "model.path": settings.MODEL,
        "data.train_files": data.file,
        "data.messages_key": "messages",
        "data.max_length": data.limit,
        "data.max_token_len_per_gpu": data.limit,
        "data.truncation": "error",
        "data.train_batch_size": settings.ROWS_OF_A_STEP,
        "optim.lr": settings.RATES["sft"],
        "trainer.default_local_dir": settings.OUTPUT,
        "trainer.logger": "console",
    }
    return {"train.sh": shlex.join(words + [f"{name}={value}" for name, value in values.items()]) + "\n"}


_SFT = Form(
    "messages",
    turns,
    _files,
    "sh train.sh",
    "The chat template ends each answer with the end-of-turn token.",
)
VERL = Target(
    "verl",
    "verl",
    "https://github.com/volcengine/verl/blob/main/verl/utils/dataset/multiturn_sft_dataset.py",
    {"structured_cot": _SFT, "responses": _SFT},
    suffixes=(".parquet",),
)
