"""What a training ran on: versions and devices, without names of machines or people, and without paths."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("stairdata", "torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "datasets")
_CPU_FACTS = Path("/proc/cpuinfo")


def environment() -> dict[str, Any]:
    """Return versions, the system, and the devices of this process, as JSON can hold them."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "device": torch.cuda.get_device_name(0) if on_gpu else _processor(),
        "devices": torch.cuda.device_count() if on_gpu else 1,
        "cuda": torch.version.cuda if on_gpu else None,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name as Linux knows it; what Python says is empty there."""
    try:
        text = _CPU_FACTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or "CPU"
