"""Identifiers and seeds: pure functions of content, the same on every machine."""

from __future__ import annotations

import hashlib
import json
import unicodedata

from stairdata_schemas.aliases import Json

ID_LENGTH = 16
SEED_BITS = 53  # the integers that every JSON reader keeps exact


def prompt_id(prompt: str) -> str:
    """Return the first 16 hex digits of sha256 over the NFC form of the prompt."""
    return _hexdigest(unicodedata.normalize("NFC", prompt))


def tree_id(prompt_id: str, seed: int, ordinal: int = 0) -> str:
    """Identify the `ordinal`-th tree grown from a prompt with a seed."""
    return _hexdigest(f"{prompt_id}/{seed}/{ordinal}")


def pair_id(tree_id: str, chosen_node_id: int, rejected_node_id: int, granularity: str) -> str:
    """Identify a pair by its tree, its two nodes and its granularity."""
    return _hexdigest(f"{tree_id}/{chosen_node_id}/{rejected_node_id}/{granularity}")


def response_id(prompt_id: str, made_by: Json, seed: int) -> str:
    """Identify a response.

    Args:
        prompt_id: of the prompt.
        made_by: models with their revisions, the method and all settings that decide the answer, as JSON values.
        seed: the recipe's.
    """
    settings = json.dumps(made_by, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return _hexdigest(f"{prompt_id}/{settings}/{seed}")


def request_seed(seed: int, owner: str, call: int, ask: int = 0) -> int:
    """Return the seed of one request: the low 53 bits of sha256 over who asks for what.

    Args:
        seed: the recipe's seed.
        owner: the tree (or prompt) the request belongs to.
        call: ordinal of the request within its owner, whatever the order of execution.
        ask: 0 for the first ask and for its retries; a re-ask because of the content raises it.
    """
    digest = hashlib.sha256(f"{seed}/{owner}/{call}/{ask}".encode()).digest()
    return int.from_bytes(digest, "big") & ((1 << SEED_BITS) - 1)


def _hexdigest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:ID_LENGTH]
