"""Which prompts are wanted at all: by length, by language, by overlap with evaluation prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from stairdata.generators.prompts.near_duplicates import Contamination
from stairdata.recipe import Recipe
from stairdata_schemas.errors import InputError, RecipeError, quote

BY_DESIGN = frozenset({"duplicate_prompt", "near_duplicate", "contaminated", "language", "too_short", "too_long"})
"""Rules that sound rows may break: counted, but nothing is wrong with the source."""
# py3langid takes some short English questions for these; whoever wants them names them
_RARELY_MEANT = {"pcm"}


class Rejection(NamedTuple):
    """Why a prompt is left out."""

    rule: str
    detail: str


Filter = Callable[[str], Rejection | None]


def filters_of(recipe: Recipe, contamination: Contamination | None) -> list[Filter]:
    """Return the filters that a recipe asks for, the cheap ones first.

    Raises:
        RecipeError: an unknown language, or a limit in tokens without a tokenizer.
        InputError: a library is not installed.
    """
    section = recipe.prompts
    filters: list[Filter] = [_by_characters(section.min_characters, section.max_characters)]
    if contamination is not None:
        filters.append(_by_overlap(contamination))
    if section.languages:
        filters.append(_by_language(section.languages, section.min_language_probability))
    if section.max_tokens is not None:
        filters.append(_by_tokens(section.max_tokens, recipe.tokenizer_or_default(section.tokenizer)))
    return filters


def first_verdict(filters: list[Filter], prompt: str) -> Rejection | None:
    """Return the first filter's word against a prompt."""
    return next((verdict for each in filters if (verdict := each(prompt)) is not None), None)


def _by_characters(least: int, most: int | None) -> Filter:
    def judge(prompt: str) -> Rejection | None:
        if len(prompt) < least:
            return Rejection("too_short", f"{len(prompt)} characters")
        if most is not None and len(prompt) > most:
            return Rejection("too_long", f"{len(prompt)} characters")
        return None

    return judge


def _by_overlap(contamination: Contamination) -> Filter:
    def judge(prompt: str) -> Rejection | None:
        found = contamination.find(prompt)
        return Rejection("contaminated", found) if found else None

    return judge


def _by_tokens(most: int, tokenizer: str | None) -> Filter:
    from stairdata_schemas.rendering import encode_plain, load_tokenizer

    if tokenizer is None:
        raise RecipeError("prompts.max_tokens needs prompts.tokenizer: the folder or Hub id of a tokenizer")
    loaded = load_tokenizer(tokenizer)

    def judge(prompt: str) -> Rejection | None:
        if len(prompt.encode()) <= most:  # a token has a byte at least
            return None
        count = len(encode_plain(loaded, prompt))
        return Rejection("too_long", f"{count} tokens") if count > most else None

    return judge


def _by_language(wanted: list[str], least: float) -> Filter:
    identifier = _identifier(wanted)

    def judge(prompt: str) -> Rejection | None:
        ranked = dict(identifier.rank(prompt))
        share = sum(ranked[language] for language in wanted)
        rival = max(ranked.keys() - set(wanted), key=lambda language: (ranked[language], language), default=None)
        if rival is None or share >= least * (share + ranked[rival]):
            return None
        return Rejection("language", f"{rival} {ranked[rival]:.2f}, {' and '.join(wanted)} {share:.2f}")

    return judge


def _identifier(wanted: list[str]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise InputError(
            "the language filter needs the package py3langid; install it with `pip install 'stairdata[prompts]'`"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = list(identifier.labels)
    unknown = [language for language in wanted if language not in known]
    if unknown:
        raise RecipeError(f"prompts.languages: {quote(unknown[0])} is not one of {', '.join(sorted(known))}")
    identifier.set_languages([label for label in known if label in wanted or label not in _RARELY_MEANT])
    return identifier
