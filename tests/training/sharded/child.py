"""Trainings one after the other, in one of the processes that torchrun starts, under FSDP if the environment says so.

python child.py JOBS.json
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer import dpo_trainer

from stairdata_training import config, dpo, prm, sft
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train

CONFIGS = {"sft": config.SftConfig, "dpo": config.DpoConfig, "prm": config.PrmConfig}
METHODS = {"sft": sft.SFT, "dpo": dpo.DPO, "prm": prm.PRM}


def load_a_reference(*_: Any, **__: Any) -> None:
    raise AssertionError("TRL loads a reference model")


def run(job: dict[str, Any]) -> None:
    def on_progress(step: int, *_: Any) -> None:
        if step == job.get("stop"):
            os.kill(os.getpid(), signal.SIGKILL)

    rows, method = Dataset.from_list(job["rows"]), job["method"]
    plan = TrainingPlan(method, rows, job["model"], Path(job["output"]), CONFIGS[method](**job["config"]))
    train(plan, METHODS[method], on_progress)


if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parent / "fsdp_on_cpu.py"))
    dpo_trainer.create_model_from_path = load_a_reference
    for each in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(each)
