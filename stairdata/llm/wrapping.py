"""What models put around an answer: thoughts before it, and a code fence about it."""

from __future__ import annotations

THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"))
FENCE = "```"
_FORMS = ("{", "[", "<|")
"""How an answer in a form begins; what looks like thoughts or a fence later on is part of its texts."""


def split_thoughts(text: str) -> tuple[str, str]:
    """Split a text into the thoughts before an answer and the answer, which is empty where the thoughts do not end.

    The opening tag may be missing: templates of reasoning models write it into the prompt.
    """
    rest = text.lstrip()
    for opening, closing in THOUGHTS:
        if rest.startswith(opening):
            thoughts, _, answer = rest.removeprefix(opening).partition(closing)
            return thoughts.strip(), answer.lstrip()
    if not rest.startswith((*_FORMS, FENCE)):
        for _, closing in THOUGHTS:
            before, found, after = rest.partition(closing)
            # a tag inside of an answer's own text has the form before it and none behind it
            if found and (not _has_form(before) or _has_form(after)):
                return before.strip(), after.lstrip()
    return "", text


def without_thoughts(text: str) -> str:
    """Cut off the thoughts before an answer (`split_thoughts`)."""
    return split_thoughts(text)[1]


def _has_form(text: str) -> bool:
    return any(form in text for form in _FORMS)


def unwrapped(text: str) -> str:
    """Return an answer in a form (JSON, the step grammar) without thoughts, and without the code fence about it.

    Words before and after the fence are left out. Fences inside of the answer's own texts are kept.
    """
    said = without_thoughts(text).strip()
    if said.startswith(_FORMS) or FENCE not in said:
        return said
    inner = said.partition(FENCE)[2]
    begin = min((place for form in _FORMS if (place := inner.find(form)) >= 0), default=-1)
    if begin < 0 or len(inner[:begin].split()) > 1:  # a fence names a language at most
        return said
    end = inner.rfind(FENCE)
    return inner[begin:end].strip() if end >= 0 else inner[begin:].strip()
