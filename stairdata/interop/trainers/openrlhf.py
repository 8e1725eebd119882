"""OpenRLHF: conversations for its SFT, DPO and reward trainers, with the command that reads them.

Read in OpenRLHF 0.11.2:
https://github.com/OpenRLHF/OpenRLHF/blob/main/openrlhf/datasets/sft_dataset.py and reward_dataset.py there.

- Its last token is always EOS: it is put behind each text that lacks it, and in place of the last token of each
  sequence. So it can't go on with a half-written turn.
- Rows longer than `--data.max_len` (512 for pairs where nothing is said) are cut in silence.
- A column `margin` changes the reward trainer's loss, so none is written.
"""

from __future__ import annotations

import shlex
from functools import partial

from stairdata.examples.conversations import prompt_and_answer, two_sides
from stairdata.interop.trainers import settings
from stairdata.interop.trainers.settings import Stage
from stairdata.interop.trainers.target import Data, Form, Target, by_kind

_PAIR_KEYS = ("--data.prompt_key", "prompt", "--data.chosen_key", "chosen", "--data.rejected_key", "rejected")
_OF_DPO = ("--ref.model_name_or_path", settings.MODEL, "--model.beta", str(settings.BETA))
_PROGRAMS: dict[Stage, tuple[str, ...]] = {
    "sft": ("openrlhf.cli.train_sft", "--data.input_key", "input", "--data.output_key", "output"),
    "dpo": ("openrlhf.cli.train_dpo", *_PAIR_KEYS, *_OF_DPO),
    "reward": ("openrlhf.cli.train_rm", *_PAIR_KEYS),
}


def _files(stage: Stage, data: Data) -> dict[str, str]:
    program, *options = _PROGRAMS[stage]
    words = ["deepspeed", "--module", program, *options, "--data.apply_chat_template", "--data.dataset", data.file]
    words += ["--data.max_len", str(data.limit), "--train.batch_size", str(settings.ROWS_OF_A_STEP)]
    words += ["--train.micro_batch_size", "1", "--adam.lr", str(settings.RATES[stage])]
    words += ["--model.model_name_or_path", settings.MODEL, "--ckpt.output_dir", settings.OUTPUT]
    return {"train.sh": shlex.join(words) + "\n"}


_COMMAND = "sh train.sh"
_ENDS = "The trainer ends each text with the tokenizer's EOS token, behind what the chat template writes."
_SFT = Form(
    "input, output: conversations",
    partial(prompt_and_answer, prompt="input", text="output"),
    partial(_files, "sft"),
    _COMMAND,
    _ENDS,
)
_SIDES = "prompt, chosen, rejected: conversations"
OPENRLHF = Target(
    "openrlhf",
    "OpenRLHF",
    "https://github.com/OpenRLHF/OpenRLHF/tree/main/openrlhf/datasets",
    by_kind(
        _SFT,
        Form(_SIDES, two_sides, partial(_files, "dpo"), _COMMAND, _ENDS),
        Form(_SIDES, two_sides, partial(_files, "reward"), _COMMAND, _ENDS),
    ),
)
