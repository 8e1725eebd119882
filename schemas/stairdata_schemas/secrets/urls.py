"""Credentials in URLs, which would go into manifests, messages and logs with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

_TELLING = re.compile(
    r"(?:^|[_-])(?:key|token|secret|password|passwd|pass|pwd|auth|authorization|sig|signature|credentials?|jwt|code)$"
    r"|apikey|accesskey|accesstoken|authtoken|clientsecret",
    re.IGNORECASE,
)


def url_credentials(url: str) -> str | None:
    """Say which credentials a URL holds, without showing them; None if it holds none.

    A name alone counts, too: many servers take a key in its place.
    """
    try:
        parts = urlsplit(url.strip())
        has_login = "@" in parts.netloc
    except ValueError:  # not a URL, which somebody else will say
        return None
    if has_login or ("://" not in url and re.match(r"[^/\s@:]++:[^/\s@]++@", url)):
        return "a user name or password"
    named = next((name for name, _ in _query(url) if is_telling_parameter(name)), None)
    return None if named is None else f"a key in its query ({named}=)"


def is_telling_parameter(name: str) -> bool:
    """Return whether a parameter of a URL is named like a secret."""
    return _TELLING.search(name) is not None


def query_secrets(url: str) -> Iterator[str]:
    """Yield the values in a URL's query and fragment that are named like secrets."""
    yield from (value for name, value in _query(url) if is_telling_parameter(name))


def without_credentials(url: str) -> str:
    """Return a URL as it may be shown: without user name, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _query(url: str) -> list[tuple[str, str]]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return []
    return [*parse_qsl(parts.query, keep_blank_values=True), *parse_qsl(parts.fragment, keep_blank_values=True)]
