"""Which licence rows may carry: the strictest of what they were made from.

The identifiers are those of the Hub (https://huggingface.co/docs/hub/repositories-licenses). Only what they ask of
those who pass rows on is looked at: naming the authors, sharing alike, no commerce, no changed copies. Whether two
licences go together in law is a question for people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

FREE = frozenset({"cc0-1.0", "pddl", "unlicense", "wtfpl"})
PERMISSIVE = frozenset(
    {
        "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-2.0",
        "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "etalab-2.0", "isc", "mit",
        "ms-pl", "ncsa", "odc-by", "postgresql", "zlib",
    }
)  # fmt: skip
SHARE_ALIKE = frozenset(
    {
        "agpl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cdla-sharing-1.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl",
        "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "odbl", "osl-3.0",
    }
)  # fmt: skip
NON_COMMERCIAL = frozenset({"cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"})
NON_COMMERCIAL_SHARE_ALIKE = frozenset({"cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"})
NO_DERIVATIVES = frozenset({"cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"})
_RANKS = (FREE, PERMISSIVE, SHARE_ALIKE, NON_COMMERCIAL, NON_COMMERCIAL_SHARE_ALIKE, NO_DERIVATIVES)
UNRANKED = frozenset(
    {
        "apple-amlr", "apple-ascl", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m",
        "bsd-3-clause-clear", "c-uda", "cc", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0",
        "epl-2.0", "fair-noncommercial-research-license", "gemma", "grok2-community", "h-research", "intel-research",
        "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "ofl-1.1",
        "openmdw-1.0", "openrail", "openrail++",
    }
)  # fmt: skip
"""The Hub's other identifiers: what they ask is not compared here."""
HUB = UNRANKED.union(*_RANKS)
_UNKNOWN = frozenset({"", "other", "unknown"})


def normal(license: str | None) -> str | None:
    """Return a licence's identifier as the Hub writes it, or None where it says nothing."""
    name = (license or "").strip().lower()
    return None if name in _UNKNOWN else name


def is_identifier(license: str) -> bool:
    """Tell whether a text looks like a licence's identifier."""
    return re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license) is not None


def rank(license: str) -> int | None:
    """Return how strict a licence is, from 0; None for one that is not known here."""
    return next((place for place, group in enumerate(_RANKS) if license in group), None)


def strictest(licenses: Iterable[str | None]) -> str | None:
    """Return the strictest licence; None if there is none, if one is unknown, or if they can't be compared.

    Share-alike and non-commercial terms together give cc-by-nc-sa-4.0, which has both.
    """
    names = {normal(license) for license in licenses}
    if not names or None in names:
        return None
    known = {name: rank(name) for name in names if name is not None}
    if len(known) == 1:
        return next(iter(known))
    if None in known.values():
        return None
    if known.keys() & SHARE_ALIKE and known.keys() & NON_COMMERCIAL and not known.keys() & NO_DERIVATIVES:
        return "cc-by-nc-sa-4.0"
    return max(known, key=lambda name: (known[name] or 0, name))


def is_laxer(license: str, than: str) -> bool:
    """Tell whether a licence asks less than another, or can't be compared with it."""
    ours, theirs = rank(license), rank(than)
    if license == than:
        return False
    return ours is None or theirs is None or ours < theirs
