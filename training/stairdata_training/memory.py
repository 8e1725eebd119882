"""How a lack of memory shows, on processors and on GPUs."""

from __future__ import annotations

_WORDS = ("OutOfMemoryError", "can't allocate memory", "not enough memory", "CUDA out of memory")
"""Of torch, whose errors are of several classes."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error says that there is too little memory."""
    return isinstance(error, MemoryError) or any(words in f"{type(error).__name__}: {error}" for words in _WORDS)
