"""What a teacher's answer has to be to count as a harmless twin of a prompt."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from stairdata.generators.prompts.filters import Rejection
from stairdata.generators.prompts.near_duplicates import similarity
from stairdata.llm.client import Generation
from stairdata.llm.outcomes import THINKS_TOO_LONG
from stairdata.search.refusal import is_refusal
from stairdata_schemas.errors import quote
from stairdata_schemas.text.visible import is_blank

OPENING, CLOSING = "<twin>", "</twin>"
LEAST_SHARE = 0.1
"""A script with a smaller share of a prompt's letters is not one that the prompt is written in."""
# a prompt may well hold words of refusal ("how do I tell him that I can't help?"), but seldom begins with them
_BEGINS_REFUSAL = re.compile(
    r"(?:(?:i'm|i am) (?:so |very |really )?sorry|sorry(?=[,.;!]| but| i\b)|i apologi[sz]e|my apologies|as an ai"
    r"|(?:i|we) (?:can't|cannot|can not|won't|will not)|(?:i'm|i am) (?:unable|not able))\b"
)
_SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK"}
"""Japanese is written in several scripts."""


def read_twin(generation: Generation, prompt: str, max_similarity: float) -> str | Rejection:
    """Read a twin out of a teacher's answer, or say what is wrong with it.

    Args:
        generation: the answer, thoughts apart.
        prompt: whose twin it shall be.
        max_similarity: a Jaccard index of character 5-grams that is too high.
    """
    said = generation.samples[0]
    before, closed, _ = said.text.rpartition(CLOSING)
    _, opened, between = before.rpartition(OPENING)
    if opened and closed:
        twin = between.strip()
        return twin_fault(twin, prompt, max_similarity) or twin
    if generation.is_only_thoughts:
        return Rejection("only_reasoning", THINKS_TOO_LONG)
    if said.finish == "length":
        return Rejection("cut_at_length", f"the answer {quote(said.text)} was cut; raise max_tokens")
    if is_refusal(said.text):
        return Rejection("twin_refused", f"the teacher declined: {quote(said.text)}")
    return Rejection("twin_unreadable", f"nothing stands between {OPENING} and {CLOSING} in {quote(said.text)}")


def twin_fault(twin: str, prompt: str, max_similarity: float) -> Rejection | None:
    """Return why a text is no twin of a prompt; None if it may be one. Whether it is harmless is not asked."""
    if is_blank(twin):
        return Rejection("twin_empty", f"nothing but white space stands between {OPENING} and {CLOSING}")
    words = twin.replace("\u2019", "'").lower().lstrip(string.punctuation + string.whitespace)
    if _BEGINS_REFUSAL.match(words) and is_refusal(twin):
        return Rejection("twin_refused", f"the twin is a refusal: {quote(twin)}")
    alike = similarity(twin, prompt)
    if alike >= max_similarity:
        return Rejection("twin_repeats_prompt", f"similarity {alike:.2f}: {quote(twin)}")
    found, wanted = scripts_of(twin), scripts_of(prompt)
    script = max(found, key=lambda name: found[name], default=None)
    if script is not None and wanted and wanted[script] < LEAST_SHARE * wanted.total():
        return Rejection("twin_in_other_script", f"{script.title()} letters: {quote(twin)}")
    return None


def scripts_of(text: str) -> Counter[str]:
    """Count a text's letters by their script, as the first word of their names in Unicode says it."""
    letters = filter(str.isalpha, unicodedata.normalize("NFKC", text))
    names = (re.split("[ -]", unicodedata.name(letter, "UNKNOWN"), maxsplit=1)[0] for letter in letters)
    return Counter(_SCRIPTS.get(name, name) for name in names)
