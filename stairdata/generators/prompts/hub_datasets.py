"""Rows streamed out of Hub datasets, at one commit, in one order, whatever happens to the connection."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from stairdata.generators.prompts.files import ClassName
from stairdata.generators.prompts.known_datasets import known_source
from stairdata.hub.client import ATTEMPTS, LONGEST_WAIT, api, explain, is_transient, redact, retried
from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats.limits import HUB_ROWS_BYTES, TooLargeError, scaled, size
from stairdata_schemas.formats.memory import held, memory_limit

_SHA = re.compile(r"[0-9a-f]{40}")


class HubRows(NamedTuple):
    """What of a Hub dataset is read."""

    dataset: str
    revision: str
    """A commit: a branch could move between two connections."""
    config: str | None
    split: str
    like: str | None = None
    """The known dataset that its files are those of."""


def read_hub(source: HubRows) -> Iterator[Row]:
    """Stream the rows; no code of the repository is run.

    Where the connection breaks, the rest is asked for again: rows come once each, in the order of the commit.

    Raises:
        InputError: not there, not reachable, gated, or no such configuration or split.
    """
    _info(source.dataset, source.revision, source.like)  # says within seconds that the Hub is away; what follows waits
    state: dict[str, Any] | None = None
    failures = most = 0
    while True:
        rows: Any = None
        try:
            most = most or _most()
            with memory_limit(most):
                rows = _open(source)
            if state is not None:
                rows.load_state_dict(state)
            labels = {name: kind.names for name, kind in (rows.features or {}).items() if hasattr(kind, "int2str")}
            for row in _bounded(rows, most):
                failures = 0
                yield row | {name: ClassName.of(row.get(name), names) for name, names in labels.items()}
        except MemoryError as error:
            raise TooLargeError(
                f"the Hub dataset {quote(source.dataset)}",
                f"a row, or the rows that are read at a time, take more than {size(scaled(HUB_ROWS_BYTES))}",
            ) from error
        except Exception as error:
            if failures == ATTEMPTS - 1 or not _is_passing(error):
                raise InputError(_refusal(error, source.dataset, source.revision, source.like)) from error
            state = rows.state_dict() if rows is not None else state
            _sleep(min(LONGEST_WAIT, 0.5 * 2**failures))
            failures += 1
        else:
            return


def _most() -> int:
    now = held()
    return now + scaled(HUB_ROWS_BYTES) if now else 0


def _bounded(rows: Any, most: int) -> Iterator[Row]:
    """Yield rows; what reads them runs under a limit of memory, what is done with them does not."""
    found = iter(rows)
    while True:
        with memory_limit(most):
            row = next(found, None)
        if row is None:
            return
        yield row


def _open(source: HubRows) -> Any:
    from datasets import config, load_dataset

    # we go on by ourselves; its own way waits for up to a hundred seconds and is silent about why
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 1
    config.STREAMING_READ_RETRY_INTERVAL = config.STREAMING_OPEN_RETRY_INTERVAL = 0
    config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns at each of its own retries
    named = source.dataset, source.config
    rows = load_dataset(*named, split=source.split, revision=source.revision, streaming=True)
    # pictures and sound would be decoded, with packages that prompts don't need, where the features say what they are
    return rows if rows.features is None else rows.decode(False)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _is_passing(error: BaseException) -> bool:
    """Return whether anything in the chain of causes is a hiccup, and nothing of it a refusal."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = list(_chain(error))
    refused = any(isinstance(each, HfHubHTTPError) and not is_transient(each) for each in chain)
    return not refused and any(is_transient(each) for each in chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def hub_license(dataset: str, revision: str) -> str | None:
    """Return the licence that a Hub dataset's card states; None where it states none, or several.

    Raises:
        InputError: not there or not reachable.
    """
    card = _info(dataset, revision).card_data
    stated = card.get("license") if card is not None else None
    return stated if isinstance(stated, str) else None


def hub_revision(dataset: str, revision: str | None, like: str | None = None) -> str:
    """Resolve a branch or tag of a Hub dataset to a commit; a commit is taken as it is.

    Raises:
        InputError: not there or not reachable.
    """
    if revision is not None and _SHA.fullmatch(revision):
        return revision
    return str(_info(dataset, revision, like).sha)


def _info(dataset: str, revision: str | None, like: str | None = None) -> Any:
    try:
        return retried(lambda: api().dataset_info(dataset, revision=revision))
    except Exception as error:
        raise InputError(_refusal(error, dataset, revision, like)) from error


def _refusal(error: BaseException, dataset: str, revision: str | None, like: str | None) -> str:
    """Return why a dataset can't be read, and what to do: terms, a token, other names, or files by hand."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    chain = list(_chain(error))
    if any(isinstance(each, GatedRepoError) or "is a gated dataset" in str(each) for each in chain):
        return (
            f"the Hub dataset {quote(dataset)} is gated: accept its terms on {page}, set HF_TOKEN to a token of that "
            "account, and run the same command again"
        )
    refusal = next((each for each in chain if isinstance(each, RepositoryNotFoundError | RevisionNotFoundError)), None)
    if isinstance(refusal, RepositoryNotFoundError):
        return f"{explain(refusal, quote(dataset))}; a private or gated one needs HF_TOKEN"
    if refusal is not None:
        return f"the Hub dataset {quote(dataset)} has no revision {quote(revision)}; name another with `revision:`"
    said = quote(redact(" ".join(str(error).split())), 200)
    if not _is_passing(error) and not _is_offline(chain):
        return (
            f"the Hub dataset {quote(dataset)} can't be read ({type(error).__name__}: {said}); check id, revision, "
            "config and split" + _by_hand(dataset, revision, like)
        )
    return f"the Hub can't be reached for {quote(dataset)} ({said}); try again" + _by_hand(dataset, revision, like)


def _is_offline(chain: list[BaseException]) -> bool:
    return any(type(each).__name__ in {"OfflineModeIsEnabled", "LocalEntryNotFoundError"} for each in chain)


def _by_hand(dataset: str, revision: str | None, like: str | None) -> str:
    """Return which files to bring here, and the recipe's line that reads them."""
    known = known_source(like or dataset)
    folder = f"data/{dataset.rpartition('/')[2]}"
    include = "".join(f" --include '{pattern}'" for pattern in known.files) if known else ""
    at = f" --revision {revision}" if revision else ""
    line = f"{{path: {folder}, like: {known.hub}}}" if known else f"{{path: {folder}, columns: ...}}"
    return (
        f", or bring its files here: where the Hub can be reached, run `hf download {dataset} --repo-type dataset{at}"
        f"{include} --local-dir {folder}`, copy that folder, and write the source as {line}"
    )
