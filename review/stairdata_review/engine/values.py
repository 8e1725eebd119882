"""Values in requests, read as Elasticsearch would read them for the kind of the property."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from uuid import UUID

from argilla_server.errors.future import UnprocessableEntityError

_DATE = re.compile(
    r"(?P<year>\d{4})(-(?P<month>\d\d?)(-(?P<day>\d\d?)([T ](?P<hour>\d\d?)(:(?P<minute>\d\d?)(:(?P<second>\d\d?)"
    r"([.,](?P<fraction>\d{1,9}))?)?)?)?)?)?\s*(?P<zone>Z|[+-]\d\d:?\d\d)?"
)
LARGEST_INTEGER = 2**63  # SQLite's
_PARTS = (("month", 1, 1), ("day", 1, 1), ("hour", 0, 23), ("minute", 0, 59), ("second", 0, 59))


def number(value: object) -> float | int:
    """Return a number.

    Raises:
        UnprocessableEntityError: it is none.
    """
    try:
        whole = int(str(value))
    except ValueError:
        pass
    else:
        return whole if abs(whole) < LARGEST_INTEGER else float(whole)
    try:
        return float(str(value))
    except ValueError:
        raise UnprocessableEntityError(f"{shown(value)} is not a number, and the property holds numbers") from None


def keyword(value: object) -> str:
    """Return a word as it is kept."""
    return str(value)


def record_id(value: object) -> str:
    """Return a record's id as the database writes it; what is no id is equal to none."""
    try:
        return UUID(str(value)).hex
    except ValueError:
        return str(value).replace("-", "")


def moment(value: object, *, latest: bool) -> datetime:
    """Return a moment in UTC; what a date leaves open is its first moment, or its last with `latest`.

    Months and days left open are the first in both cases, as Elasticsearch has it. Numbers are milliseconds since
    1970.

    Raises:
        UnprocessableEntityError: it is no date.
    """
    try:
        return _date(str(value).strip(), latest)
    except (ValueError, OverflowError):
        raise UnprocessableEntityError(f"{shown(value)} is not a date such as 2026-01-31T12:00:00") from None


def shown(value: object, limit: int = 80) -> str:
    """Return a value for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _date(text: str, latest: bool) -> datetime:
    if re.fullmatch(r"-?\d{5,}(\.\d+)?", text):
        return datetime(1970, 1, 1) + timedelta(milliseconds=float(text))
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError(text)
    month, day, hour, minute, second = (int(found[name] or (last if latest else first)) for name, first, last in _PARTS)
    fraction = found["fraction"]
    micros = int(fraction[:6].ljust(6, "0")) if fraction else 999_999 * latest
    when = datetime(int(found["year"]), month, day, hour, minute, second, micros)
    return when - _offset(found["zone"])


def _offset(zone: str | None) -> timedelta:
    if zone is None or zone == "Z":
        return timedelta()
    digits = zone.replace(":", "")
    offset = timedelta(hours=int(digits[1:3]), minutes=int(digits[3:5]))
    return -offset if digits[0] == "-" else offset
