"""Counting tokens before they are paid for: exactly where the tokenizer is at hand, else estimated from bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from stairdata.recipe import Endpoint
from stairdata_schemas.errors import quote

if TYPE_CHECKING:
    import tiktoken

BYTES_PER_TOKEN = 4
FETCH_SECONDS = 20.0  # tiktoken fetches its tables without a time-out
CHAT_TOKENS = 8  # OpenAI adds that many at most to a chat of one message


class TokenCount(NamedTuple):
    """How texts are counted for a model."""

    count: Callable[[str], int]
    how: str
    """In words, for the reader of a forecast."""
    is_exact: bool


def token_count(endpoint: Endpoint) -> TokenCount:
    """Find out how to count a model's tokens; never fails, an estimate says that it is one.

    A tokenizer of the recipe counts first, then tiktoken by the model's name. tiktoken fetches its tables from the
    network unless TIKTOKEN_CACHE_DIR holds them.
    """
    tokenizer = endpoint.tokenizer or endpoint.path
    if tokenizer is not None:
        from stairdata_schemas.rendering import TokenCounter, load_tokenizer

        return TokenCount(TokenCounter(load_tokenizer(tokenizer)), "by the model's tokenizer", is_exact=True)
    name = endpoint.model or ""
    try:
        encoding = _encoding(name)
    except KeyError:
        return _estimate(f"tiktoken does not know {quote(name)}")
    except Exception as error:  # noqa: BLE001 - whatever the network, its proxy or the disk may raise
        return _estimate(f"tiktoken can't get the tables of {quote(name)}: {type(error).__name__}")

    def count(text: str) -> int:
        return len(encoding.encode_ordinary(text)) + CHAT_TOKENS

    return TokenCount(count, f"by tiktoken, {encoding.name}", is_exact=True)


def _estimate(reason: str) -> TokenCount:
    how = f"ESTIMATED from bytes, {BYTES_PER_TOKEN} a token ({reason})"
    return TokenCount(lambda text: len(text.encode()) // BYTES_PER_TOKEN + CHAT_TOKENS, how, is_exact=False)


def _encoding(name: str) -> tiktoken.Encoding:
    """Load a model's encoding, and give up on a network that says nothing.

    Raises:
        KeyError: tiktoken does not know the model.
        Exception: the tables can't be had.
    """
    import tiktoken

    tiktoken.encoding_name_for_model(name)
    found: list[tiktoken.Encoding] = []
    failed: list[Exception] = []

    def load() -> None:
        try:
            found.append(tiktoken.encoding_for_model(name))
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(FETCH_SECONDS)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer in {FETCH_SECONDS:.0f} s")
    return found[0]
