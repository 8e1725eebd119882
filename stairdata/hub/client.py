"""Talking to the Hub: what a repository holds, and the client's exceptions as messages a person can act on.

The token is huggingface_hub's own business (environment or its store); nothing here sees it but `redact`, which
keeps it out of messages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from stairdata.hub.addresses import TagName, is_config, parse_tag
from stairdata_schemas.errors import HubError, quote
from stairdata_schemas.formats.limits import HUB_FILES, NOTE_BYTES, VARIABLE, scaled
from stairdata_schemas.manifest import MANIFEST_NAME
from stairdata_schemas.secrets.redaction import hold
from stairdata_schemas.secrets.urls import url_credentials

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
RepoType = Literal["dataset", "model"]
DATASET: RepoType = "dataset"
MODEL: RepoType = "model"
MAIN = "main"
README = "README.md"
ATTEMPTS = 5
LONGEST_WAIT = 8.0
_URL_SECRETS = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")


class RemoteFile(NamedTuple):
    """A file of a repository at some commit."""

    size: int
    oid: str
    """Git's hash of the content, or of the pointer where the content is in LFS."""
    sha256: str | None
    """Hash of the content where it is in LFS."""


FileListing = dict[str, RemoteFile]


class Repository(NamedTuple):
    """What a repository is right now."""

    name: str
    private: bool
    gated: str | bool
    """False, or auto, or manual."""
    head: str
    tags: dict[str, str]
    branches: dict[str, str]

    @property
    def is_gated(self) -> bool:
        return bool(self.gated)

    def releases(self) -> dict[str, TagName]:
        """Return the tags that are releases, by name."""
        parsed = {tag: parse_tag(tag) for tag in self.tags}
        return {tag: name for tag, name in parsed.items() if name is not None}


def api() -> HfApi:
    """Return the Hub's client.

    Raises:
        HubError: HF_ENDPOINT holds a password or key, which cards and messages would show.
    """
    from importlib.metadata import version

    from huggingface_hub import HfApi, constants, get_token

    from stairdata.hub.transfers import bound_transfers

    held = url_credentials(constants.ENDPOINT)
    if held is not None:
        raise HubError(f"the URL in HF_ENDPOINT holds {held}; leave it out, and set the key as HF_TOKEN")
    hold(get_token() or "")
    bound_transfers()
    return HfApi(library_name="stairdata", library_version=version("stairdata"))


def repository(name: str, repo_type: RepoType = DATASET) -> Repository | None:
    """Look at a repository; None if it is not there (or not for this token to see).

    Raises:
        HubError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with hub_errors(name, repo_type):
        try:
            wanted = ["private", "gated", "sha"]
            info: Any = retried(lambda: api().repo_info(name, repo_type=repo_type, expand=wanted))  # type: ignore[arg-type]
            refs = retried(lambda: api().list_repo_refs(name, repo_type=repo_type))
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    branches = {branch.name: branch.target_commit for branch in refs.branches}
    return Repository(
        name=name,
        private=bool(info.private),
        gated=info.gated or False,
        head=branches.get(MAIN) or str(info.sha),
        tags={tag.name: tag.target_commit for tag in refs.tags},
        branches=branches,
    )


def tree(name: str, revision: str, repo_type: RepoType = DATASET) -> FileListing:
    """List the files of a repository at a commit.

    Raises:
        HubError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub.hf_api import RepoFile

    def listed() -> list[Any]:
        most = scaled(HUB_FILES)
        entries = api().list_repo_tree(name, revision=revision, repo_type=repo_type, recursive=True)
        found = list(islice(entries, most + 1))
        if len(found) > most:
            raise HubError(f"{name} holds over {most} files and folders, which is the limit ({VARIABLE} raises it)")
        return found

    with hub_errors(name, repo_type):
        entries = [entry for entry in retried(listed) if isinstance(entry, RepoFile)]
    return {
        entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None) for entry in entries
    }


def read(name: str, path: str, revision: str, limit: int = NOTE_BYTES, repo_type: RepoType = DATASET) -> bytes:
    """Read a small file of a repository at a commit, past any cache.

    Args:
        name: the repository.
        path: of the file in it.
        revision: the commit.
        limit: most bytes; no more is fetched, whatever size the Hub lists.
        repo_type: of the repository.

    Raises:
        HubError: not there, too large, or the Hub can't be reached or refuses.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    from stairdata.hub.transfers import TransferError, bound_transfers, transfer_limit

    url = hf_hub_url(name, path, repo_type=repo_type, revision=revision)

    def fetched() -> bytes:
        bound_transfers()
        with transfer_limit(scaled(limit)):
            response = get_session().get(url, headers=build_hf_headers(library_name="stairdata"))
        hf_raise_for_status(response)
        return bytes(response.content)

    with hub_errors(name, repo_type):
        try:
            return retried(fetched)
        except TransferError as error:
            raise HubError(f"{path} in {name} at {revision[:12]} {error}; {VARIABLE}=2 doubles each limit") from None


def manifests(files: FileListing) -> dict[str | None, str]:
    """Return the path of each manifest in a tree by its config; None is the root."""
    found: dict[str | None, str] = {}
    for path in sorted(files):
        folder, _, name = path.rpartition("/")
        if name == MANIFEST_NAME and (not folder or is_config(folder)):
            found[folder or None] = path
    return found


def holds(remote: RemoteFile | None, local: Path | bytes, sha256: str | None = None) -> bool:
    """Return whether a file on the Hub has the content of a local one, whose sha256 may be known."""
    if remote is None:
        return False
    size = local.stat().st_size if isinstance(local, Path) else len(local)
    if remote.size != size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == (sha256 or _digest("sha256", local, b""))
    return remote.oid == _digest("sha1", local, b"blob %d\0" % size)  # as git hashes a file


def _digest(method: str, content: Path | bytes, head: bytes) -> str:
    hasher = hashlib.new(method, head, usedforsecurity=False)
    if isinstance(content, bytes):
        hasher.update(content)
        return hasher.hexdigest()
    with content.open("rb") as file:
        while piece := file.read(1024**2):
            hasher.update(piece)
    return hasher.hexdigest()


def retried(call: Callable[[], T]) -> T:
    """Call something that changes nothing, again if the Hub hiccups or the connection breaks."""
    import tenacity

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT),
        retry=tenacity.retry_if_exception(is_transient),
        reraise=True,
    )
    return retrying(call)


def is_transient(error: BaseException) -> bool:
    """Return whether an exception may be gone the next time, and whether what it interrupted may have happened."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):  # a download whose first request failed
        return error.__cause__ is None or is_transient(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return status in {408, 425, 429} or status >= 500
    if isinstance(error, httpx2.UnsupportedProtocol):  # HF_ENDPOINT is no URL
        return False
    if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError | RecursionError):
        # what an upload thread and Xet raise; the cause says more, if there is one
        return error.__cause__ is None or is_transient(error.__cause__)
    return False


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an exception of the client."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


@contextmanager
def hub_errors(repo: str, repo_type: RepoType = DATASET) -> Iterator[None]:
    """Turn what the client raises into a HubError that says what to do.

    Raises:
        HubError: always instead of the client's exceptions.
    """
    import httpx2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
    )

    from stairdata.hub.transfers import TransferError

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise HubError(explain(error.__cause__ or error, repo, repo_type)) from None
    except (HfHubHTTPError, httpx2.HTTPError, ConnectionError, TimeoutError, HFValidationError) as error:
        raise HubError(explain(error, repo, repo_type)) from None
    except TransferError as error:
        raise HubError(f"an answer about {repo} {error}; {VARIABLE}=2 doubles each limit") from None
    except LocalTokenNotFoundError as error:
        raise HubError(f"no Hub token; run `hf auth login`, or set HF_TOKEN ({type(error).__name__})") from None
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UnicodeError):
            if _is_token_fit():
                raise
            raise HubError(
                "the Hub token holds invalid characters; run `hf auth login`, or set HF_TOKEN to a valid one"
            ) from None
        raise HubError(explain(error, repo, repo_type)) from None


def _is_token_fit() -> bool:
    """Return whether the token can be sent at all."""
    from huggingface_hub import get_token

    return (get_token() or "").isascii()


def explain(error: BaseException, repo: str, repo_type: RepoType = DATASET) -> str:
    """Return what the Hub's refusal means and what to do about it, without a token in it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    said, status = quote(redact(" ".join(str(error).split())), 200), status_of(error)
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: ask for access on its page on the Hub, then run the same command again"
    if isinstance(error, RepositoryNotFoundError):
        return f"no {repo_type} {repo} on the Hub for this token; check the name, and `hf auth whoami`"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision; `stairdata list --repo {repo}` shows what it has ({said})"
    if is_transient(error):
        return f"the Hub could not be reached or failed ({said}); run the same command again, finished work is kept"
    refusals = {
        401: f"the Hub does not accept the token for {repo}; run `hf auth login`, or set HF_TOKEN to a valid one",
        403: f"the token may not do this to {repo}; use one with write access to it ({said})",
    }
    return refusals.get(status or 0, f"the Hub refused a request about {repo} ({said})")


def redact(text: str) -> str:
    """Take tokens and signed queries out of a text."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "[token]")
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "[token]", text)
    return _URL_SECRETS.sub(r"\1", text)
