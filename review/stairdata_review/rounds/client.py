"""Argilla's HTTP API, as far as a review round needs it, with errors that say what to do.

Not the SDK: it knows no metadata of a dataset, can't continue a dataset that is half made, and reads records through
the search engine, which may lag behind the database.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httpx

from stairdata_review.server.folder import default_folder
from stairdata_review.server.running_server import find_server
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import ReviewError, UsageError, quote
from stairdata_schemas.network.body_limits import BodyLimit, BodyLimitError, BodyMeter
from stairdata_schemas.network.socket_deadlines import SocketDeadline
from stairdata_schemas.secrets.redaction import hold
from stairdata_schemas.secrets.urls import url_credentials

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
KEY_VARIABLE = "ARGILLA_API_KEY"
SPACES = ".hf.space"
TIMEOUT = 120.0
"""Seconds that a request may take, from connecting to the last byte of its answer."""
LIMIT = BodyLimit(128 * 2**20, 2_000_000)
"""Of one answer. The largest is a page of 500 records with their responses."""
MOST_RECORDS = 10_000_000
"""Of a dataset; a server that speaks of more does not end."""
WAITS = (0.5, 2.0, 8.0)
"""Seconds before a request is sent again."""
PAGE = 500
REWRITTEN = frozenset({b"content-length", b"transfer-encoding", b"content-type"})
"""Headers that go with a body as it is sent. The charset goes, too: httpx takes "zlib" for one, and fails."""
MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be gone when the request is sent again."""


class ServerAccess(NamedTuple):
    """A server and the key for it."""

    url: str
    key: str


def find_access(folder: Path | None, url: str | None, *, remote: bool) -> ServerAccess:
    """Find the server to talk to, and the key for it.

    Args:
        folder: of a server that `review serve` keeps; default: the user's data folder.
        url: of another server; its key is in the environment, in ARGILLA_API_KEY.
        remote: the server may be another machine.

    Raises:
        UsageError: folder and url, an invalid url, or another machine without `remote` or https.
        ReviewError: no server runs there, or there is no key for it.
    """
    if url is None:
        return _of_folder(folder or default_folder())
    if folder is not None:
        raise UsageError("give --folder (a server of `stairdata review serve`) or --url (another one), not both")
    _check_url(url, remote=remote)
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise ReviewError(f"set {KEY_VARIABLE} to the API key of an owner or admin; Argilla shows it under My settings")
    if not key.isascii() or not key.isprintable():
        raise ReviewError(f"{KEY_VARIABLE} contains characters that no API key can have; copy it again")
    return ServerAccess(url.rstrip("/"), key)


def _of_folder(folder: Path) -> ServerAccess:
    running = find_server(folder)
    if running is None:
        raise ReviewError(
            f"no server runs in {folder}: start one with `stairdata review serve --background`, or name one with --url"
        )
    return ServerAccess(running.url, running.credentials().api_key)


def _check_url(url: str, *, remote: bool) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    # before anything else: the message of a wrong address shows it
    if url_credentials(url) is not None or (host is not None and (parts.query or parts.fragment)):
        raise UsageError(f"--url must not contain a name, password or query; the key belongs in {KEY_VARIABLE}")
    if host is None or parts.scheme not in {"http", "https"}:
        raise UsageError(f"--url {quote(url)} is not an address; write https://argilla.example.org")
    if host in LOCAL:
        return
    if parts.scheme != "https":
        raise UsageError(f"{quote(host)} is another machine: use https, or the key and the texts are sent unencrypted")
    if not remote:
        raise UsageError(f"{quote(host)} is another machine: add --remote to send texts and answers there")


SPACE_TOKEN = "ARGILLA_HF_TOKEN"  # noqa: S105 - a name; not HF_TOKEN: that may write to the Hub, and a Space may be a stranger's


class Argilla:
    """A connection to a server, as its owner or an admin; use it as a context manager."""

    def __init__(self, access: ServerAccess) -> None:
        self.url = access.url
        hold(access.key)
        host = urlsplit(access.url).hostname or ""
        # httpx would decompress an answer without a limit
        headers = {"X-Argilla-Api-Key": access.key, "Accept-Encoding": "identity"}
        if host.endswith(SPACES) and os.environ.get(SPACE_TOKEN):  # a private Space asks for a token of the Hub as well
            headers["Authorization"] = f"Bearer {os.environ[SPACE_TOKEN]}"
        self._http = httpx.Client(
            base_url=f"{access.url}/api/v1",
            headers=headers,
            timeout=TIMEOUT,
            trust_env=host not in LOCAL,  # no proxy between a machine and itself
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept
            limits=httpx.Limits(max_connections=1),  # so that the last connection made is the one in use
        )
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()
        self._forget_socket()

    def check(self) -> Json:
        """Return who the key belongs to.

        Raises:
            ReviewError: no server there, an unknown key, or one of an annotator.
        """
        me = self.get("/me")
        if not isinstance(me, dict) or me.get("role") not in {"owner", "admin"}:
            raise ReviewError(
                f"{self.url}: the key is an annotator's, or this is not Argilla; only an owner or admin can make and "
                "read a review round"
            )
        return me

    def get(self, path: str, params: Json | None = None) -> Any:
        """Ask for something; asked again if the server fails."""
        return self._send("GET", path, params=params)

    def put(self, path: str, body: Json | None = None) -> Any:
        """Store something; sent again if the server fails, so that sending it twice has to do no harm."""
        return self._send("PUT", path, body)

    def patch(self, path: str, body: Json) -> Any:
        """Change something; sent again if the server fails."""
        return self._send("PATCH", path, body)

    def delete(self, path: str) -> Any:
        """Delete something; sent again if the server fails."""
        return self._send("DELETE", path)

    def post(self, path: str, body: Json) -> Any:
        """Make something new; sent once, because a server that failed may have made it."""
        return self._send("POST", path, body, waits=())

    def records(self, dataset_id: str, *, responses: bool = False) -> Iterator[list[Json]]:
        """Yield all records of a dataset in pages, straight from the server's database.

        Raises:
            ReviewError: records came or went meanwhile.
        """
        seen: set[str] = set()
        total = 1
        offset = 0
        while offset < total:
            params: Json = {"offset": offset, "limit": PAGE, **({"include": "responses"} if responses else {})}
            page = self.get(f"/datasets/{dataset_id}/records", params)
            total, items = self._checked_page(page)
            if not items:
                break
            offset += len(items)
            seen.update(item["id"] for item in items)
            yield items
        # records are ordered by time alone: of equal times one could come twice, and another not at all
        if len(seen) != total and total:
            raise ReviewError(
                f"the records changed while they were read ({len(seen)} of {total}); run the command again"
            )

    def _send(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        params: Json | None = None,
        waits: tuple[float, ...] | None = None,
    ) -> Any:
        for wait in (*(WAITS if waits is None else waits), None):
            try:
                response = self._ask(method, path, body, params)
            except httpx.TransportError as error:
                if wait is None:
                    raise ReviewError(
                        f"{self.url} doesn't answer ({type(error).__name__}); nothing is lost: once the server runs, "
                        "the same command continues"
                    ) from None
            else:
                if wait is None or response.status_code not in MAY_PASS:
                    return self._answer(response, method, path)
            time.sleep(wait)
        raise AssertionError("the last round returns or raises")

    def _ask(self, method: str, path: str, body: Json | None, params: Json | None) -> httpx.Response:
        """Send a request once.

        Raises:
            httpx.TransportError: no answer, or none within the time.
            ReviewError: the answer is larger than any of Argilla's, or compressed although nobody asked for that.
        """
        whole, meter = bytearray(), BodyMeter(LIMIT)
        with SocketDeadline(TIMEOUT) as deadline:
            if self._socket is not None:
                deadline.watch(self._socket)

            def note_connection(event: str, info: Json) -> None:
                if event == "connection.connect_tcp.complete":
                    self._forget_socket()
                    # a copy: TLS takes the descriptor out of the original
                    self._socket = info["return_value"].get_extra_info("socket").dup()
                    deadline.watch(self._socket)

            options: Json = {"json": body, "params": params, "extensions": {"trace": note_connection}}
            try:
                with self._http.stream(method, path, **options) as response:
                    self._check_plain(response, path)
                    for piece in response.iter_bytes():
                        meter.count(piece)
                        whole += piece
            except BodyLimitError as error:
                raise ReviewError(f"{self.url} is not an Argilla server: {method} {path}: {error}") from None
            except httpx.TransportError:
                if not deadline.is_over:
                    raise
            if deadline.is_over:
                raise httpx.ReadTimeout(f"the answer was not complete after {TIMEOUT:g} s")
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in REWRITTEN]
        return httpx.Response(response.status_code, headers=headers, content=bytes(whole), request=response.request)

    def _forget_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _check_plain(self, response: httpx.Response, path: str) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ReviewError(f"{self.url} compresses its answer to {path}, which it was not asked to do")

    def _checked_page(self, page: Any) -> tuple[int, list[Json]]:
        total = page.get("total") if isinstance(page, dict) else None
        items = page.get("items") if isinstance(page, dict) else None
        if type(total) is not int or total > MOST_RECORDS or not isinstance(items, list):
            raise ReviewError(f"{self.url} is not an Argilla server: it answers with something else than records")
        return total, items

    def _answer(self, response: httpx.Response, method: str, path: str) -> Any:
        if response.is_success:
            if not response.content:
                return None
            try:
                return response.json()
            except (ValueError, RecursionError):
                raise ReviewError(
                    f"{self.url} is not an Argilla server: it answers {path} with something else"
                ) from None
        raise _StatusError(_explain(self.url, response, method, path), response.status_code)


class _StatusError(ReviewError):
    """The server answered with an error status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def conflict(message: str) -> Iterator[None]:
    """Turn a conflict (409) into a message of its own."""
    try:
        yield
    except _StatusError as error:
        if error.status == httpx.codes.CONFLICT:
            raise ReviewError(message) from None
        raise


def _explain(url: str, response: httpx.Response, method: str, path: str) -> str:
    status = response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return f"{url} doesn't know the API key; copy it again from Argilla's My settings"
    if status == httpx.codes.FORBIDDEN:
        return f"{url} doesn't allow {method} {path} with this key; use that of an owner or admin"
    if response.is_redirect:
        return f"{url} redirects to {quote(response.headers.get('location', ''))}; give that address"
    said = f"{url} answered {method} {path} with {status}: {quote(response.text, 300)}"
    if status in MAY_PASS:
        return f"{said}; nothing is lost: the same command continues"
    return said
