"""Trainings in two processes on a CPU, under FSDP, one after the other.

python child.py JOBS.json STATUSES.json

Libraries are imported once, and the processes are forked, as often as there are lists of jobs in the file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from trl.trainer import dpo_trainer

from stairdata_training import config, dpo, prm, sft
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train

PROCESSES = 2
ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "OMP_NUM_THREADS": "1",
}
CONFIGS = {"sft": config.SftConfig, "dpo": config.DpoConfig, "prm": config.PrmConfig}
METHODS = {"sft": sft.SFT, "dpo": dpo.DPO, "prm": prm.PRM}


def let_accelerate_see_fsdp() -> None:
    """Do for MULTI_CPU what accelerate's state does for MULTI_GPU and leaves out on CPUs."""
    original = AcceleratorState.__init__

    def with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        is_first = not AcceleratorState._shared_state
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if is_first and fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = with_fsdp


def load_a_reference(*_: Any, **__: Any) -> None:
    raise AssertionError("TRL loads a reference model")


def run(job: dict[str, Any]) -> None:
    def on_progress(step: int, *_: Any) -> None:
        with Path(f"{job['output']}.steps").open("a", encoding="utf-8") as steps:
            steps.write(f"{step}\n")
        if step == job["stop"]:
            os.kill(os.getpid(), signal.SIGKILL)

    rows, method = Dataset.from_list(job["rows"]), job["method"]
    plan = TrainingPlan(method, rows, job["model"], Path(job["output"]), CONFIGS[method](**job["config"]))
    train(plan, METHODS[method], on_progress)


def forked(jobs: list[dict[str, Any]]) -> list[int]:
    """Run jobs in new processes and return how these ended; one that fails ends the other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started: list[int] = []
    for rank in range(PROCESSES):
        number = os.fork()
        if number == 0:
            os.environ.update(address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)})
            try:
                for job in jobs:
                    run(job)
            except BaseException:  # noqa: BLE001 - what would leave this function twice
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        started.append(number)
    statuses: list[int] = []
    while len(statuses) < PROCESSES:
        number, status = os.wait()
        started.remove(number)
        statuses.append(status)
        if status:
            for other in started:
                os.kill(other, signal.SIGKILL)
    return statuses


if __name__ == "__main__":
    let_accelerate_see_fsdp()
    dpo_trainer.create_model_from_path = load_a_reference
    groups = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps([forked(jobs) for jobs in groups]), encoding="utf-8")
