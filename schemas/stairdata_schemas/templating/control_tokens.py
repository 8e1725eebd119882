"""Control tokens in a user's text stay text: a prompt that spells `<|im_end|>` must not end its own turn.

A tokenizer finds the contents of its special tokens wherever they stand, also in what a user wrote. Prompts that forge
an assistant's turn in this way are usual in collections of jailbreaks. Two ways keep them plain text:

- `PlainReader` gives the token ids that the model would read if the user's part had no control tokens. Text that goes
  over the wire can't say this, ids can.
- `neutralise` writes a space into each control token of a text, for servers that take nothing but text and cut it into
  tokens themselves. The tokenizers of these are unknown, so it knows the forms of the families' tokens.

Not covered are templates that mark turns by plain words, such as Llama 2's `[INST]` or Alpaca's `### Response:`: no
tokenizer tells these from a user's. `neutralise` covers the former.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from stairdata_schemas.errors import ModelError
from stairdata_schemas.grammar import TAGS

# Contents of control tokens in the tokenizer.json files of the model families, by form. Each bounded in length.
_FORMS = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,64}[|\uff5c]>"  # ChatML, Llama 3 and 4, Phi, Qwen, Command R, gpt-oss, DeepSeek
    r"|</?s>|<</?SYS>>|\[/?INST\]"  # Llama 2, Mistral
    r"|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|MODEL_SETTINGS|THINK)\]"
    r"|<(?:start|end)_of_turn>"  # Gemma
    r"|<(?:bos|eos|pad|unk|mask|sop|eop|cls|sep)>|<(?:BOS|EOS|PAD|UNK)_TOKEN>"
    r"|\[(?:gMASK|sMASK|MASK|CLS|SEP|PAD|UNK)\]"  # GLM, BERT
    r"|\[\|[A-Za-z_]{1,32}\|\]"  # EXAONE
    r"|<(?:extra_id|reserved|unused)_?\d{1,4}>"  # Nemotron, Baichuan, Gemma
    r"|\]~!?b\[|\[e~\["  # MiniMax
)
_FOUND: WeakKeyDictionary[Any, tuple[tuple[int, str], tuple[str, ...]]] = WeakKeyDictionary()
"""By tokenizer, as long as no token was added to it: thousands of prompts are looked through."""
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"  # of private use: no control token has them


class PlainReader:
    """Reads a rendered conversation in which the user's part is plain text, whatever it spells.

    It holds a copy of the tokenizer in which each control token goes by a name that no text can have. In a conversation
    the template's control tokens are written by these names, and the user's as they are; the copy then cuts the whole
    into tokens in one piece, so that nothing changes at the seams.

    Args:
        tokenizer: a transformers tokenizer with a backend of the `tokenizers` library.

    Raises:
        ModelError: it has no such backend, or the copy reads an ordinary conversation in another way.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                "the tokenizer is none of the `tokenizers` library (it has no tokenizer.json), so control tokens in a "
                "prompt can't be read as plain text; use the model's fast tokenizer, or leave out such prompts"
            )
        tokens = control_tokens(tokenizer)
        nonce = secrets.token_hex(8)  # else a prompt could spell the names
        self._names = {token: f"{_OPEN}{nonce}{index}{_CLOSE}" for index, token in enumerate(tokens)}
        self._held = {token: f"{_OPEN}{nonce}u{index}{_CLOSE}" for index, token in enumerate(tokens)}
        self._pattern = _pattern(tokens)
        self._copy = type(backend).from_str(_renamed(backend.to_str(), self._names))
        ordinary = "".join(f"{token}user\n\nHi {token} there{token}" for token in tokens)
        if (
            self._copy.encode(self.write(ordinary), add_special_tokens=False).ids
            != (tokenizer(ordinary, add_special_tokens=False)["input_ids"])
        ):
            raise ModelError(
                "control tokens in a prompt can't be read as plain text with this tokenizer: a copy of it with other "
                "names for them cuts an ordinary text into other tokens; leave out such prompts"
            )

    def hold(self, text: str) -> str:
        """Put something in place of the control tokens of a user's text, until the template is written around it."""
        return self._pattern.sub(lambda found: self._held[found[0]], text)

    def write(self, text: str) -> str:
        """Write a text's control tokens by their names, and give back those that were held, as plain text."""
        named = self._pattern.sub(lambda found: self._names[found[0]], text)
        return self.show(named)

    def show(self, text: str) -> str:
        """Give back the control tokens that were held, for whoever reads the text."""
        for token, held in self._held.items():
            text = text.replace(held, token)
        return text

    def encode(self, written: str) -> list[int]:
        """Return the token ids of what `write` wrote, nothing added around them."""
        ids: list[int] = self._copy.encode(written, add_special_tokens=False).ids
        return ids


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the control tokens of a tokenizer, the longest first.

    These are its special tokens, and the added tokens that its chat template mentions: several models add ChatML's
    without marking them as special. Added tokens of letters or of white space alone are no control tokens.
    """
    state = len(tokenizer), str(tokenizer.chat_template)
    known = _FOUND.get(tokenizer)
    if known is None or known[0] != state:
        added = tokenizer.added_tokens_decoder.values()
        found = {str(token.content) for token in added if _is_control(str(token.content), token.special, state[1])}
        known = _FOUND[tokenizer] = state, tuple(sorted(found, key=lambda content: (-len(content), content)))
    return known[1]


def _is_control(content: str, is_special: bool, template: str) -> bool:
    return bool(content.strip()) and (is_special or (content in template and bool(re.search(r"[^\w\s]", content))))


def find_control_tokens(tokenizer: Any, text: str) -> list[str]:
    """Return the control tokens that a tokenizer would find in a text, each once.

    Some tokenizers look for them in the text's normal form, such as full-width letters in their usual width.
    """
    tokens = control_tokens(tokenizer)
    if not tokens:
        return []
    found = _pattern(tokens).findall(text)
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is not None:
        found += _pattern(tokens).findall(normalizer.normalize_str(text))
    return list(dict.fromkeys(found))


def find_outside_grammar(tokenizer: Any, answer: str) -> list[str]:
    """Return the control tokens of an answer that are none of the grammar's tags, each once."""
    return [token for token in find_control_tokens(tokenizer, answer) if token not in TAGS]


def neutralise(text: str, tokens: Collection[str] = (), keep: Collection[str] = TAGS) -> str:
    """Write a space behind the first character of each control token, so that no tokenizer takes it for one.

    Args:
        text: of a prompt or an answer that is quoted in a message.
        tokens: control tokens of the model that reads it, where they are known; others are found by their form.
        keep: tokens that are left. The grammar's tags mark steps, not turns, and judges read them in what they rate.
    """
    pattern = _quoted_pattern(_longest_first(tokens))

    def parted(found: re.Match[str]) -> str:
        token = found[0]
        return token if token in keep else token[0] + ("." if re.search(r"\s", token) else " ") + token[1:]

    while (changed := pattern.sub(parted, text)) != text:  # tokens may stand inside others
        text = changed
    return text


def find_quoted(text: str, tokens: Collection[str] = ()) -> list[str]:
    """Return the control tokens in a text that `neutralise` would change, each once."""
    found = _quoted_pattern(_longest_first(tokens)).findall(text)
    return [token for token in dict.fromkeys(found) if token not in TAGS]


def _longest_first(tokens: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(set(tokens), key=lambda token: (-len(token), token)))


@lru_cache(maxsize=64)
def _quoted_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    known = [re.escape(token) for token in tokens if len(token) > 1]
    return re.compile("|".join([*known, _FORMS.pattern]))


@lru_cache(maxsize=64)
def _pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def _renamed(tokenizer: str, names: dict[str, str]) -> str:
    """Return a tokenizer.json in which tokens go by other names and keep their ids.

    Vocabularies are renamed, too: a model that finds whole words there would find a control token's content.
    """
    content = json.loads(tokenizer)
    for token in content["added_tokens"]:
        if token["content"] in names:
            # the name is looked for in the text as it is, before any normal form is made
            token["content"], token["normalized"] = names[token["content"]], False
    model = content["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    content["post_processor"] = None  # it adds special tokens by name, and is not asked to
    return json.dumps(content)
