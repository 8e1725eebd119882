"""Permission to use the matrix tiles (AMX) of an x86 processor, for vLLM's worker.

Linux ends a process with SIGILL that uses them without having asked (arch_prctl(ARCH_REQ_XCOMP_PERM),
https://docs.kernel.org/arch/x86/xstate.html). vLLM 0.32 never asks: in a worker oneDNN does, once a matrix is large
enough for it to use tiles. A tiny model has no such matrix, so vLLM's own attention is the first to use them.
"""

from __future__ import annotations

import torch

torch.cpu._init_amx()  # False where the processor has none


class AmxWorker:
    """Adds nothing to the worker; `--worker-extension-cls` imports this module in its process."""
