"""The words of a text, in every script: what rewards, overlaps and similarities count."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import regex

from stairdata_schemas.text.visible import without_invisible

_MINUS = r"(?<![\w)\]])-(?=\d)"  # a sign of the number behind it, neither a hyphen nor a range
_ASCII_WORD = re.compile(rf"(?:{_MINUS})?\w+", re.ASCII)
_ASCII_GAP = re.compile(r"(?:[^\w-]|_|-(?!\d)|(?<=[\w)\]])-)+", re.ASCII)
_LINE = str.maketrans({"\u2212": "-"})

# one letter for the class of a character, so that Python's own `re` finds words in the string of classes
_CLASSES = {
    "m": r"\p{M}",
    "d": r"\p{N}--\p{Script=Han}",
    # scripts without spaces, in which a character is about a word
    "i": r"[\p{Han}\p{Hiragana}\p{Yi}\p{Tangut}\p{Nushu}\p{Khitan_Small_Script}]&&[\p{L}\p{N}]",
    # scripts without spaces, whose words only a dictionary finds
    "u": r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Ahom}\p{Javanese}"
    r"\p{Balinese}]&&\p{L}",
    "k": r"[\p{Katakana}\u30fc]&&\p{L}",  # the mark of a long vowel belongs to no script
    "w": r"\p{L}",
    "_": "_",
    "-": r"\-",
    ")": r")\]",
    " ": r"\p{Any}",
}
_WORD = re.compile(r"im*|(?P<unspaced>(?:um*)+)|(?:km*)+|(?:(?<![iukwdm_)])-(?=d))?(?:[wd_]m*)+")
_GAP = re.compile(r"(?:[) _]|-(?!d)|(?<=[iukwdm_)])-|(?<![iukwdm])m+)+")
_CHARACTER = re.compile("um*")
# - * / . and others also mark up text, so they count between or before numbers and single letters only
_SIGN = (
    r"[[\p{Sm}\p{Sc}\p{So}%‰°]--[|~]]"
    r"|!(?==)|\^(?=\s?[\w(-])"
    r"|(?<![\w)\]*-])-(?=[\w(])"
    r"|(?<=(?:\b\w|\d|[)\]])\s?)[-*/](?=\s?-?(?:\w\b|\d|\())"
    r"|(?<=\d)[.,:](?=\d)"
)
_TERM = regex.compile(rf"(?:{_SIGN})|(?:(?![-])[\p{{L}}\p{{N}}_]\p{{M}}*+)++", regex.V1)


class _Classes(dict[int, str]):
    """The class of each character that has been met."""

    _patterns = tuple((name, regex.compile(f"[{members}]", regex.V1)) for name, members in _CLASSES.items())

    def __missing__(self, code: int) -> str:
        found = next(name for name, pattern in self._patterns if pattern.match(chr(code)))
        self[code] = found
        return found


_CLASS_OF = _Classes()


def comparable(text: str) -> str:
    """Return the form in which texts are compared.

    That is NFKC without difference of case, without format and control characters, with one minus sign.
    """
    shown = without_invisible(text)
    if shown.isascii():
        return shown.lower()
    folded = unicodedata.normalize("NFKC", shown).casefold()
    return unicodedata.normalize("NFKC", folded).translate(_LINE)


def words(text: str) -> list[str]:
    r"""Return a text's words in their order, in their comparable form.

    The words are those of Unicode Standard Annex #29, with combining marks, tailored in three ways. An apostrophe, stop
    or comma inside a word parts it, so that words of ASCII letters are those of `\w+`. A minus directly before a number
    belongs to it. And where words aren't spaced apart and the standard asks for a dictionary (Thai, Lao, Khmer,
    Burmese and others), a run of characters becomes its overlapping pairs. As in the standard, Chinese characters and
    Hiragana are a word each, and a run of Katakana is one.
    """
    plain = comparable(text)
    return _ASCII_WORD.findall(plain) if plain.isascii() else list(_words(plain))


def words_and_signs(text: str) -> list[str]:
    """Return a text's words and the signs of its formulas, so that `x = 5`, `x = -5` and `x < 5` differ."""
    found: list[str] = _TERM.findall(comparable(text))
    return found


def spaced(text: str) -> str:
    """Return a text in its comparable form, with one space for all that stands between words."""
    plain = comparable(text)
    if plain.isascii():
        return _ASCII_GAP.sub(" ", plain).strip()
    kept, end = [], 0
    for match in _GAP.finditer(plain.translate(_CLASS_OF)):
        kept.append(plain[end : match.start()])
        end = match.end()
    return " ".join([*kept, plain[end:]]).strip()


def _words(plain: str) -> Iterator[str]:
    classes = plain.translate(_CLASS_OF)
    for match in _WORD.finditer(classes):
        start, end = match.span()
        if match["unspaced"] is None:
            yield plain[start:end]
            continue
        starts = [each.start() for each in _CHARACTER.finditer(classes, start, end)]
        ends = [*starts[2:], end]  # where the character after each one ends
        yield from (plain[first:last] for first, last in zip(starts, ends, strict=False))
