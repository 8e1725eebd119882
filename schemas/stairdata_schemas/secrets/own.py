"""The secrets that this machine itself holds: in its environment, and the Hub's token.

A variable counts by its name (`*_TOKEN`, `*_PASS`, `*_WEBHOOK`, ...), or because its value is a URL or a connection
string with a password. A value counts from 8 characters on, unless it is no secret or is in plain text all the time: a
path that is there, a URL without a password, a number, a switch, a plain word, the name of this user or machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stairdata_schemas.secrets.urls import query_secrets

LEAST_CHARACTERS = 8
"""Of shorter values plain text holds too many by chance."""
LEAST_WORD = 16
"""Letters alone, or digits alone, are a word or a number below this."""
LEAST_DISTINCT = 4
HUB_TOKEN = "the Hub token"  # noqa: S105 - what messages call it

_TELLING = re.compile(
    r"TOKEN(?!IZ)|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|CREDENTIAL|WEBHOOK|CONNECTION_?STRING"
    r"|(?:^|[_-])(?:PASS|PW|PWD|AUTH|CREDS?|PAT|DSN|JWT|BEARER|COOKIE|COOKIES|PIN|CONN_STR|CONNSTR|SAS)(?:[_-]|S?$)",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"[_-](?:USER|USERNAME|LOGIN|NAME|FILE|PATH|DIR|FOLDER|HOME|SOCK|SOCKET|HOST|PORT|TYPE|METHOD|MODE|PARALLELISM|"
    r"PROVIDER|PLUGIN|ALGORITHM|TTL|EXPIRY|REGION)$",
    re.IGNORECASE,
)
"""What ends so says where a secret lies or what it is for."""
_WORKING_FOLDERS = frozenset({"PWD", "OLDPWD"})
_HEADER = re.compile(r"^(?:bearer|basic|token)\s+(?=\S)", re.IGNORECASE)
_IN_CONNECTION = re.compile(
    r"(?:^|[\s;&?])(?:password|passwd|pwd|accountkey|sharedaccesskey|secret)\s*=\s*([^\s;&]+)", re.IGNORECASE
)
_NOT_SECRET = frozenset(
    {
        "changeme",
        "disabled",
        "keychain",
        "no-key-required",
        "not-needed",
        "not_needed",
        "not-required",
        "sk-no-key-required",
        "token-abc123",  # the one in vLLM's manual
        "your-api-key",
        "your_api_key",
    }
)


def own_secrets() -> dict[str, str]:
    """Return the values that must not leave this machine, each with the name of the variable that holds it."""
    found = environment_secrets()
    with suppress(ImportError):
        from huggingface_hub import get_token

        token = get_token() or ""
        if _can_be_secret(token):
            found.setdefault(token, HUB_TOKEN)
    return found


def environment_secrets() -> dict[str, str]:
    """Return those of the environment alone."""
    found: dict[str, str] = {}
    for name, value in sorted(os.environ.items()):
        for secret in _secrets_in(name, value):
            found.setdefault(secret, name)
    return found


def spellings(secret: str) -> set[str]:
    """Return how a secret may stand in a text: as it is, in a URL, in JSON."""
    in_json = json.dumps(secret, ensure_ascii=False)[1:-1]
    return {secret, quote(secret, safe=""), quote(secret), in_json, in_json.replace("/", "\\/")}


def is_telling(name: str) -> bool:
    """Return whether a variable of that name holds a secret."""
    return _TELLING.search(name) is not None and _ABOUT.search(name) is None and name not in _WORKING_FOLDERS


def _secrets_in(name: str, value: str) -> Iterator[str]:
    """Yield the secrets that a variable holds, and the parts of it that are secrets alone."""
    yield from filter(_can_be_secret, _parts_of_url(name, value) if "://" in value else _parts(name, value))


def _parts(name: str, value: str) -> Iterator[str]:
    yield from _IN_CONNECTION.findall(value)
    if not is_telling(name):
        return
    yield value
    yield value.strip()
    if _HEADER.match(value):
        yield _HEADER.sub("", value)
    user, colon, password = value.partition(":")
    if colon and user.isidentifier():
        yield password
    yield from re.split(r"[\s,;]+", value)  # several keys, or the lines of a private one
    yield from _leaves(value)


def _parts_of_url(name: str, value: str) -> Iterator[str]:
    for url in re.split(r"[\s,]+", value):
        with suppress(ValueError):
            address = urlsplit(url)
            password = address.password
            if password is None and is_telling(name):
                password = address.username  # a Sentry DSN, a token in a Git remote
            yield from {password or "", unquote(password or "")}
            yield from query_secrets(url)
    yield from _IN_CONNECTION.findall(value)
    if re.search("WEBHOOK|HOOK_URL", name, re.IGNORECASE):  # whoever knows the address may post
        yield value


def _leaves(value: str) -> Iterator[str]:
    """Yield what telling keys of a JSON value hold, such as a service account's private key."""
    if not value.lstrip().startswith("{"):
        return
    with suppress(ValueError, RecursionError):
        yield from _telling_leaves(json.loads(value))


def _telling_leaves(value: Any) -> Iterator[str]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, str) and is_telling(key):
            yield inner
        yield from _telling_leaves(inner)


def _can_be_secret(value: str) -> bool:
    if len(value) < LEAST_CHARACTERS or len(set(value)) < LEAST_DISTINCT or not _is_utf8(value):
        return False
    is_plain = value.isdigit() or (value.isalpha() and (value.islower() or value.isupper() or value.istitle()))
    if is_plain and len(value) < LEAST_WORD:
        return False
    return value.lower() not in _NOT_SECRET and value not in _names_of_this_place() and not _is_path(value)


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes that no text can hold
        return False
    return True


def _is_path(value: str) -> bool:
    """Return whether a value names a place on this machine: a key may begin with a slash, too."""
    if re.match(r"[A-Za-z]:[\\/]|\.{0,2}/|~[\w-]*/", value) is None:
        return "/" in value and _exists(value)
    top = value.split("/")[1] if value.startswith("/") else ""
    return not value.startswith("/") or (top != "" and _exists(f"/{top}"))


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _names_of_this_place() -> set[str]:
    named = {os.environ.get(name, "") for name in ("USER", "USERNAME", "LOGNAME", "HOSTNAME")}
    return {*named, socket.gethostname(), Path.home().name}
