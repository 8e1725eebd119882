"""From (prompt, steps, tokenizer) to text and token ids: the one place that serving, training and PRM share.

A prompt is rendered with the model's own chat template up to the point where the assistant speaks, and the
assistant's text is appended raw: `continue_final_message` would trim the empty lines of a half-written turn
under some templates. Token ids are those of the whole text in one piece. With most tokenizers the text on either
side of a tag is read by itself, so the ids of pieces, joined, are the same, and only pieces are encoded. Where that is
not so (Metaspace marks the start of each text), or where no tag stands between two pieces, the whole is encoded and
split.

End-of-turn belongs after terminal steps alone: after a partial step it would teach the model to stop there.

What a user wrote is plain text to the model, also where it spells control tokens (see templating/control_tokens.py).
So is every other turn before the answer: a client of a server gives the assistant's earlier turns, too.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from stairdata_schemas.errors import ModelError, quote
from stairdata_schemas.grammar import OUTPUT_CLOSE, OUTPUT_OPEN, STEP_CLOSE, STEP_OPEN, TAGS, split_steps
from stairdata_schemas.templating.chat_templates import render_chat
from stairdata_schemas.templating.control_tokens import PlainReader, find_control_tokens

DATE_STRING = "26 Jul 2024"  # templates that print today's date would make every day's prompts new
COUNTS_KEPT = 16384
_PROMPTS_KEPT, _PARTS_KEPT = 256, 4096
_TAG = re.compile("(" + "|".join(map(re.escape, TAGS)) + ")")
_STEP = f"{STEP_OPEN}\nTitle: A: \nb  c\n{STEP_CLOSE}\n\n{OUTPUT_OPEN}\nFinal Answer:\n 1 x\n{OUTPUT_CLOSE}"
_PROBES = (_STEP, f"user\nWhy?\n{_STEP}", f" \n\n{_STEP} and more")
_SENTINEL = "stairdata-sentinel"


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    eos_token: str | None
    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...
    def __len__(self) -> int: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    def save_pretrained(self, save_directory: str) -> Any: ...

    @property
    def added_tokens_decoder(self) -> dict[int, Any]: ...


class Turn(NamedTuple):
    """What one side said in a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str
    """Plain text, whatever control tokens it spells; also that of an assistant."""


Conversation = tuple[Turn, ...]


class Pieces(NamedTuple):
    """Token ids of a text so far, and of texts that may follow it: joined, those of the whole."""

    so_far: list[int]
    following: list[list[int]]


class EndOfTurn(NamedTuple):
    """The token that ends an assistant turn."""

    text: str
    token_id: int


def load_tokenizer(model: str | Path) -> Any:
    """Load a tokenizer that has a chat template, without remote code.

    Raises:
        ModelError: no tokenizer there, or one without a chat template, or with one that can't be used.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
    except Exception as error:  # tokenizers raises Exception itself, and others what a damaged file leads to
        raise ModelError(
            f"no tokenizer can be loaded from {str(model)!r}: {_first_line(error)}; "
            "give a model folder with tokenizer.json, or a Hub id"
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {str(model)!r} has no chat template; give an instruction-tuned model, "
            "or a tokenizer that has one"
        )
    render_prompt(tokenizer, "?")  # a template that can't be used shows before any work is done
    return tokenizer


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt in a model's chat template, and what the assistant has said so far."""

    tokenizer: Tokenizer
    text: str
    """As the template writes it. Not what the model is to read where a turn holds control tokens."""
    reader: PlainReader | None = None
    """Reads it with the turns' contents as plain text; None where the text says all."""
    written: str = ""
    """What the reader encodes."""
    steps: str = ""
    """What the assistant has said: the end of the text."""
    before: RenderedPrompt | None = field(default=None, repr=False, compare=False)
    """The same without what was said last; its ids may be there already."""

    def plus(self, steps: str) -> RenderedPrompt:
        """Let the assistant go on."""
        written = "" if self.reader is None else self.written + self.reader.write(steps)
        return replace(self, text=self.text + steps, written=written, steps=self.steps + steps, before=self)

    @cached_property
    def _recent(self) -> _Recent:
        # looked up once: to see whether a tokenizer has changed costs more than to read a known step
        return _recent(self.tokenizer) if self.before is None else self.before._recent

    @property
    def end_of_turn(self) -> EndOfTurn:
        """What ends the assistant's turn; as `end_of_turn`."""
        return self._recent.end_of_turn

    @cached_property
    def ids(self) -> list[int]:
        """What the model reads."""
        if self.before is not None:
            last = self.text[len(self.before.text) :]
            if self.before.is_parted_from(last):
                return self.before.ids + self._recent.encode_parts(last)
        if self.reader is None:
            return self._recent.encode_parts(self.text)
        return list(self._recent.plain(self.reader, self.written))

    def is_parted_from(self, text: str) -> bool:
        """Tell whether a text that follows has the same token ids as by itself."""
        return self._recent.reads_parts_alone and (self.steps.endswith(TAGS) or text.startswith(TAGS))

    def pieces(self, *texts: str) -> Pieces:
        """Return the ids so far, and those of each text that may follow.

        A token that reaches over the border, with one of the texts, belongs to what follows: the ids so far end before
        it, with all of the texts.
        """
        if all(map(self.is_parted_from, texts)):
            return Pieces(self.ids, [self._recent.encode_parts(text) for text in texts])
        wholes = [self.plus(text).ids for text in texts]
        border = min(_common_length(self.ids, whole) for whole in wholes)
        return Pieces(self.ids[:border], [whole[border:] for whole in wholes])

    @property
    def request(self) -> str | list[int]:
        """What a server of completions is sent: text, or token ids where text can't say it."""
        return self.text if self.reader is None else self.ids

    def count(self, count_text: Callable[[str], int]) -> int:
        """Return the number of tokens, by a counter of texts where the text says all."""
        return count_text(self.text) if self.reader is None else len(self.ids)

    def count_next(self, text: str, count_text: Callable[[str], int]) -> int:
        """Return how many tokens more there are with a text that follows; added up along a path, those of the whole."""
        if self.is_parted_from(text):
            return count_text(text)
        return max(0, self.plus(text).count(count_text) - self.count(count_text))  # what follows may join tokens


def _common_length(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def turns_of(prompt: str | Conversation) -> Conversation:
    """Return a prompt as a conversation: one user turn, unless it is one already."""
    return (Turn("user", prompt),) if isinstance(prompt, str) else prompt


def render_prompt(tokenizer: Tokenizer, prompt: str | Conversation) -> RenderedPrompt:
    """Render one user turn, or a conversation, up to the point where the assistant's text begins.

    Raises:
        ModelError: the tokenizer's chat template can't be used, or does not take this conversation, or the prompt holds
            control tokens, and this tokenizer can't read them as plain text.
    """
    return RenderedPrompt(tokenizer, *_recent(tokenizer).prompt(prompt))


class _Written(NamedTuple):
    """The first fields of a rendered prompt, without its tokenizer."""

    text: str
    reader: PlainReader | None = None
    written: str = ""


def _write(tokenizer: Tokenizer, prompt: str | Conversation) -> _Written:
    turns = turns_of(prompt)
    if not any(find_control_tokens(tokenizer, turn.content) for turn in turns):
        return _Written(_in_template(tokenizer, turns))
    reader = _plain_reader(tokenizer)
    held = _in_template(tokenizer, [turn._replace(content=reader.hold(turn.content)) for turn in turns])
    return _Written(reader.show(held), reader, reader.write(held))


def _in_template(tokenizer: Tokenizer, turns: Sequence[Turn]) -> str:
    messages = [turn._asdict() for turn in turns]
    return render_chat(tokenizer, messages, add_generation_prompt=True, date_string=DATE_STRING)


class _Recent:
    """What a tokenizer has rendered and encoded last: rows of a tree follow each other, with the same prompt and steps.

    It goes with its tokenizer, so it must not keep it alive.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.ref(tokenizer)
        self.prompt = lru_cache(_PROMPTS_KEPT)(lambda prompt: _write(self.tokenizer, prompt))
        self.part = lru_cache(_PARTS_KEPT)(lambda part: tuple(self.encode(part)))
        self.plain = lru_cache(_PROMPTS_KEPT)(lambda reader, written: tuple(reader.encode(written)))

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer = self._tokenizer()
        assert tokenizer is not None  # whoever asks holds it
        return tokenizer

    @cached_property
    def end_of_turn(self) -> EndOfTurn:
        return _find_end_of_turn(self.tokenizer)

    @cached_property
    def reads_parts_alone(self) -> bool:
        return _adds_up(self.tokenizer)

    def encode_parts(self, text: str) -> list[int]:
        """Return the same ids as `encode`; what stands between two tags, such as a step, is encoded once."""
        if not self.reads_parts_alone:
            return encode(self.tokenizer, text)
        return [number for part in _TAG.split(text) if part for number in self.part(part)]

    def encode(self, part: str) -> list[int]:
        """Return the ids of a text as the function of this name, in half the time if the backend alone gives them."""
        backend = self._backend
        if backend is None or backend.truncation is not None or backend.padding is not None:
            return encode(self.tokenizer, part)
        ids: list[int] = backend.encode(part, add_special_tokens=False).ids
        return ids

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer's backend if transformers does nothing to texts and ids around it, which is tried out."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.encode_special_tokens:
            return None
        wholes = [encode(self.tokenizer, text) for text in _PROBES]  # which also resets truncation and padding
        return backend if wholes == [backend.encode(text, add_special_tokens=False).ids for text in _PROBES] else None


_RECENT: WeakKeyDictionary[Tokenizer, tuple[tuple[Any, ...], _Recent]] = WeakKeyDictionary()
"""By tokenizer, as long as neither its tokens nor its template change."""


def _recent(tokenizer: Tokenizer) -> _Recent:
    roles = (getattr(tokenizer, name, None) for name in ("bos_token", "eos_token"))  # templates may write them
    state = (len(tokenizer), str(tokenizer.chat_template), *roles)
    known = _RECENT.get(tokenizer)
    if known is None or known[0] != state:
        known = _RECENT[tokenizer] = state, _Recent(tokenizer)
    return known[1]


_READERS: WeakKeyDictionary[Tokenizer, tuple[int, PlainReader]] = WeakKeyDictionary()


def _plain_reader(tokenizer: Tokenizer) -> PlainReader:
    """Return the tokenizer's reader, made at its first need and again after tokens were added."""
    size = len(tokenizer.added_tokens_decoder)
    known = _READERS.get(tokenizer)
    if known is None or known[0] != size:
        known = _READERS[tokenizer] = size, PlainReader(tokenizer)
    return known[1]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text, tags as single ids and nothing added around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def reads_parts_alone(tokenizer: Tokenizer) -> bool:
    """Tell whether the text between two tags has the same token ids as by itself.

    Where tags are single special tokens, a tokenizer cuts a text at them before anything else. Some treat the start of
    a text in a way of its own, or take white space to a tag: whether the ids add up is tried out, once.
    """
    return _recent(tokenizer).reads_parts_alone


def _adds_up(tokenizer: Tokenizer) -> bool:
    if missing_tags(tokenizer):
        return False
    return all(
        [number for part in _TAG.split(text) if part for number in encode(tokenizer, part)] == encode(tokenizer, text)
        for text in _PROBES
    )


class TokenCounter:
    """Counts tokens of prompts and answers, each part between two tags once; whole texts where that is not the same."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer  # what it has encoded last does not keep it alive
        self._recent = _Recent(tokenizer)
        self._count = lru_cache(maxsize=COUNTS_KEPT)(lambda part: len(self._recent.encode(part)))

    def __call__(self, text: str) -> int:
        """Return the number of tokens, nothing added around the text."""
        return self._sum(text) if self._recent.reads_parts_alone else len(encode(self._tokenizer, text))

    def _sum(self, text: str) -> int:
        parts = _TAG.split(text)
        return len(parts) // 2 + sum(self._count(part) for part in parts[::2] if part)


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text of a user's by itself: what it spells is plain text."""
    if not find_control_tokens(tokenizer, text):
        return encode(tokenizer, text)
    return _plain_reader(tokenizer).encode(text)  # it knows control tokens by other names alone


def encode_prompt(tokenizer: Tokenizer, prompt: str | Conversation, prefix: str = "") -> list[int]:
    """Return the ids of a rendered prompt and the first steps of an answer to it."""
    return render_prompt(tokenizer, prompt).plus(prefix).ids


def step_ids(tokenizer: Tokenizer, prompt: str | Conversation, text: str, *, is_complete: bool) -> list[list[int]]:
    """Return what a reward model reads to score each step of an answer: the ids up to the step's end, as in training.

    With almost every tokenizer each of them is the beginning of the next.

    Args:
        tokenizer: of the reward model.
        prompt: the user's turn, or a conversation.
        text: the assistant's, from its start; one without any text counts as one step.
        is_complete: it ended by itself, so that the last ids end with the end-of-turn token.
    """
    said, found = render_prompt(tokenizer, prompt), []
    for step in split_steps(text) or [""]:
        said = said.plus(step)
        found.append(said.ids)
    if is_complete:
        found[-1] = [*found[-1], end_of_turn(tokenizer).token_id]
    return found


def end_of_turn(tokenizer: Tokenizer) -> EndOfTurn:
    """Return the token that the chat template puts after an assistant turn, else the EOS token.

    Raises:
        ModelError: the template ends turns with no special token and the tokenizer has no EOS.
    """
    return _recent(tokenizer).end_of_turn


def _find_end_of_turn(tokenizer: Tokenizer) -> EndOfTurn:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
    rendered = render_chat(tokenizer, messages, add_generation_prompt=False, date_string=DATE_STRING)
    special = tokenizer.added_tokens_decoder
    ids = encode(tokenizer, rendered.rpartition(_SENTINEL)[2])
    found = next((token for token in ids if token in special and special[token].special), None)
    if found is not None:
        return EndOfTurn(tokenizer.convert_ids_to_tokens(found), found)
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer has neither an end-of-turn token in its chat template nor an EOS token")
    return EndOfTurn(tokenizer.eos_token, encode(tokenizer, tokenizer.eos_token)[0])


def missing_tags(tokenizer: Tokenizer) -> list[str]:
    """Return the grammar tags that are not exactly one token id."""
    return [tag for tag in TAGS if len(encode(tokenizer, tag)) != 1]


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what decides how text is rendered and cut into tokens: vocabulary, added tokens, chat template."""
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    for part in (vocabulary, str(tokenizer.chat_template), str(tokenizer.eos_token)):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def model_hash(folder: Path) -> str:
    """Hash a model folder's weights, configuration and tokenizer, whatever the folder is called.

    Raises:
        ModelError: the folder isn't a model.
    """
    check_model_folder(folder)
    names = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".jinja"})
    digest = hashlib.sha256()
    for path in names:
        if path.name == "training.json":  # written beside the weights, says nothing about them
            continue
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds a model.

    Raises:
        ModelError: it does not exist, has no config.json, or no weights in safetensors form.
    """
    if not folder.is_dir():
        raise ModelError(f"the model folder {str(folder)!r} does not exist")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{str(folder)!r} is not a model folder: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{str(folder)!r} is not a model folder: it has no weights (*.safetensors)")


def check_reward_model(folder: Path) -> dict[str, Any]:
    """Check that a folder holds a reward model with one label, before any weight is read; return its configuration.

    Raises:
        ModelError: it holds no model, a language model, or a classifier of several labels.
    """
    check_model_folder(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [str(name) for name in config.get("architectures") or []]
        labels = len(config.get("id2label") or (0, 1))  # what transformers takes it for where nothing is written
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"the config.json of {str(folder)!r} can't be read: {quote(error)}") from error
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"{str(folder)!r} is not a reward model: its architecture is {quote(', '.join(architectures))}; "
            "train one with `stairdata train prm`"
        )
    if labels != 1:
        raise ModelError(
            f"{str(folder)!r} is a classifier of {labels} labels, and a process reward model has one; "
            "train one with `stairdata train prm`"
        )
    return dict(config)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
