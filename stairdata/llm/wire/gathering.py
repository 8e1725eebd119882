"""Waiting for several requests that are sent at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def gather_all(waiting: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for all, and then raise the first failure: what the others brought is journaled by then.

    Raises:
        BaseException: what the first of them that failed raised, in the order given.
    """
    if len(waiting) == 1:
        return [await waiting[0]]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
