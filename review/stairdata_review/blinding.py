"""Which side of a pair a reviewer sees as A: drawn by lot for each pair, the same lot whenever it is drawn again."""

from __future__ import annotations

import hashlib

CHOSEN, REJECTED = "chosen", "rejected"


def first_side(seed: int, item_id: str) -> str:
    """Return the side that is shown as A, chosen or rejected, each for half of all pairs."""
    digest = hashlib.sha256(f"{seed}/shown_first/{item_id}".encode()).digest()
    return CHOSEN if digest[0] & 1 else REJECTED


def other_side(side: str) -> str:
    return REJECTED if side == CHOSEN else CHOSEN


def unblind(answer: str, first: str) -> str:
    """Turn A and B of an answer into chosen and rejected; other answers stay what they are."""
    return {"A": first, "B": other_side(first)}.get(answer, answer)
