"""Trying again what changes the Hub: something may have happened although the answer was a failure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from stairdata.hub.client import DATASET, RepoType, explain, is_transient, status_of
from stairdata_schemas.errors import HubError, PublishError

FAILURES = 4
"""How often a commit or a tag is tried when the Hub fails."""
LONGEST_WAIT = 2.0


class Attempts:
    """Counts how often the Hub failed in one push."""

    def __init__(self, repo: str, repo_type: RepoType = DATASET) -> None:
        self._repo, self._type = repo, repo_type
        self._failures = 0

    def make(self, call: Callable[[], str]) -> str | None:
        """Make one attempt at something that may have happened although it failed; None asks to look again.

        Raises:
            HubError: the Hub refuses, or failed too often.
        """
        try:
            return call()
        except (HubError, PublishError):
            raise
        except Exception as error:
            if status_of(error) == 412:
                return None
            self._failures += 1
            if not _is_hubs(error):
                raise
            if self._failures >= FAILURES or not is_transient(error):
                raise HubError(explain(error, self._repo, self._type)) from None
            return None


def wait(race: int) -> None:
    """Wait a random moment, longer the more others are about."""
    time.sleep(random.uniform(0, min(LONGEST_WAIT, 0.05 * 2 ** min(race, 8))))  # noqa: S311


def _is_hubs(error: Exception) -> bool:
    """Return whether an exception comes from the Hub's client or its connection rather than from a fault of ours."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    kinds = (HfHubHTTPError, httpx2.HTTPError, ConnectionError, TimeoutError, RuntimeError, ValueError)
    return isinstance(error, kinds)
