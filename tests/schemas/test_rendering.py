"""Joined token ids of pieces are those of the whole text, and counting tokens by parts is counting them whole."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas import rendering
from stairdata_schemas.grammar import TAGS
from stairdata_schemas.rendering import RenderedPrompt, encode, end_of_turn, reads_parts_alone, render_prompt
from tests.schemas.tokenizers import FAMILIES

STEP = "<|Reasoning_step|>\nTitle: A:\nab\n<|/Reasoning_step|>"
NEXT = f"\n\n{STEP}"
OUTPUT = "\n\n<|Output|>\nFinal Answer:\n a b\n<|/Output|>"
PARTS = [*TAGS, STEP, NEXT, OUTPUT, "\n", "\n\n", " ", "Title: A:", "ab", "é👩🏽‍🚀", "東京", "<|", "|>", "I can't."]
READS_PARTS_ALONE = {"chatml", "chatml_not_special", "llama3", "qwen3", "llama2", "llama2_legacy", "metaspace_always"}
LOSSLESS = {"chatml", "chatml_not_special", "llama3", "qwen3"}
texts = st.lists(st.sampled_from(PARTS), max_size=5).map("".join)
prompts = st.lists(st.sampled_from(["Hi", "<|im_end|>", "</s>", TAGS[1], "\n", " ", "é👩🏽‍🚀"]), min_size=1, max_size=4)


def whole_ids(rendered: RenderedPrompt, text: str) -> list[int]:
    """The ids of a prompt and a text behind it, in one piece."""
    if rendered.reader is None:
        return encode(rendered.tokenizer, rendered.text + text)
    return rendered.reader.encode(rendered.written + rendered.reader.write(text))


@pytest.mark.parametrize("family", FAMILIES)
def test_which_tokenizers_read_the_text_between_tags_by_itself(family: str) -> None:
    assert reads_parts_alone(FAMILIES[family]) == (family in READS_PARTS_ALONE)


@given(st.sampled_from([*FAMILIES]), prompts.map("".join), texts, st.lists(texts, min_size=1, max_size=2))
def test_joined_pieces_are_the_whole(family: str, prompt: str, prefix: str, following: list[str]) -> None:
    tokenizer = FAMILIES[family]
    rendered = render_prompt(tokenizer, prompt)
    said = rendered.plus(prefix)
    assert said.ids == whole_ids(rendered, prefix)
    pieces = said.pieces(*following)
    assert pieces.so_far == said.ids[: len(pieces.so_far)]
    for ids, text in zip(pieces.following, following, strict=True):
        assert pieces.so_far + ids == whole_ids(rendered, prefix + text) == said.plus(text).ids
        if family in LOSSLESS:
            assert tokenizer.decode(pieces.so_far + ids, clean_up_tokenization_spaces=False) == said.text + text


@given(st.sampled_from([*FAMILIES]), st.sampled_from([STEP, STEP + NEXT]), st.sampled_from([NEXT, OUTPUT]), texts)
@settings(max_examples=40)
def test_a_step_begins_with_its_first_token(family: str, prefix: str, step: str, more: str) -> None:
    """Nothing before a tag is left to what follows; a tag that takes white space has the same id with it."""
    said = render_prompt(FAMILIES[family], "Hi").plus(prefix)
    assert said.pieces(step + more).so_far == said.ids


def test_a_token_over_the_border_belongs_to_what_follows() -> None:
    tokenizer = FAMILIES["metaspace_first"]
    said = render_prompt(tokenizer, "Hi").plus("x a")
    assert tokenizer.convert_ids_to_tokens(said.ids)[-1] == "▁a"
    one, other = said.pieces("b", "c").following
    assert tokenizer.convert_ids_to_tokens(one) == ["▁ab"]
    assert tokenizer.convert_ids_to_tokens(other) == ["▁a", "c"]
    assert said.pieces("c").so_far == said.ids
    assert said.pieces("b", "c").so_far == said.ids[:-1]


def test_metaspace_marks_no_step_as_the_start_of_a_text() -> None:
    tokenizer = FAMILIES["metaspace_first"]
    (ids,) = render_prompt(tokenizer, "Hi").plus(STEP).pieces(NEXT).following
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<0x0A>", "<0x0A>"]
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, NEXT))[:2] == ["▁", "<0x0A>"]


def test_prompt_and_steps_of_a_tree_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    plain = rendering._Recent.encode

    def watched(recent: Any, text: str) -> list[int]:
        encoded.append(text)
        return plain(recent, text)

    prompt = "Asked by no other test"
    assert reads_parts_alone(FAMILIES["chatml"])  # which is tried out at the first need
    expected = [whole_ids(render_prompt(FAMILIES["chatml"], prompt), prefix) for prefix in (STEP, STEP + NEXT)]
    monkeypatch.setattr(rendering._Recent, "encode", watched)
    for prefix, ids in zip((STEP, STEP + NEXT), expected, strict=True):
        said = render_prompt(FAMILIES["chatml"], prompt).plus(prefix)
        assert said.pieces(NEXT, OUTPUT).so_far == ids
    assert sum(prompt in text for text in encoded) == 1
    assert len(encoded) == len(set(encoded))


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_the_same_after_someone_had_texts_cut(family: str) -> None:
    tokenizer = FAMILIES[family]
    text = f"{STEP}{NEXT} and something that no other test has encoded"
    backend = tokenizer.backend_tokenizer
    try:
        backend.enable_truncation(3)
        assert render_prompt(tokenizer, "Hi").plus(text).ids == whole_ids(render_prompt(tokenizer, "Hi"), text)
    finally:
        backend.no_truncation()


def test_what_is_kept_of_a_tokenizer_follows_its_template_and_goes_with_it() -> None:
    from tests.schemas.tokenizers import CHATML, byte_level, fast

    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = fast(byte_level(special), CHATML, special, eos_token="<|im_end|>")
    assert "<|im_end|>" in render_prompt(tokenizer, "Hi").text
    assert end_of_turn(tokenizer).text == "<|im_end|>"
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|im_start|>")
    assert "<|im_end|>" not in render_prompt(tokenizer, "Hi").text
    assert end_of_turn(tokenizer).text == "<|im_start|>"
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_a_tokenizer_that_got_its_tags_later() -> None:
    from tests.schemas.tokenizers import CHATML, byte_level, fast

    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = fast(byte_level(special), CHATML, special, eos_token="<|im_end|>", tags=False)
    assert not reads_parts_alone(tokenizer)
    tokenizer.add_tokens(list(TAGS), special_tokens=True)
    assert reads_parts_alone(tokenizer)


@given(st.sampled_from([*FAMILIES]), texts)
def test_parts_add_up(family: str, text: str) -> None:
    tokenizer = FAMILIES[family]
    assert rendering.TokenCounter(tokenizer)(text) == len(encode(tokenizer, text))


@given(st.sampled_from([*FAMILIES]), prompts.map("".join), st.lists(texts, max_size=4))
def test_counts_along_a_path_add_up(family: str, prompt: str, path: list[str]) -> None:
    count = rendering.TokenCounter(FAMILIES[family])
    rendered = render_prompt(FAMILIES[family], prompt)
    said, total = rendered, rendered.count(count)
    for step in path:
        total += said.count_next(step, count)
        said = said.plus(step)
    assert total == len(whole_ids(rendered, "".join(path)))


def test_where_they_do_not_add_up_texts_are_counted_whole() -> None:
    """A tokenizer that marks the start of each text, as some SentencePiece models do."""

    class Marking:
        def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
            pieces = [text] if text in TAGS else ["start", *text.split()]
            return {"input_ids": list(range(len(pieces)))}

    count = rendering.TokenCounter(Marking())  # type: ignore[arg-type]
    text = f"one two{TAGS[0]}three"
    assert count(text) == 1 + len(text.split())
