from __future__ import annotations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stairdata_schemas.errors import GrammarError
from stairdata_schemas.grammar import (
    OUTPUT_CLOSE,
    OUTPUT_OPEN,
    RULES,
    STEP_CLOSE,
    STEP_OPEN,
    TAGS,
    Completion,
    Step,
    closes_output,
    final_answer,
    is_grammatical,
    parse,
    render,
    split_steps,
    step_title,
)
from stairdata_schemas.text.visible import is_blank

GOLDEN = """\
<|Reasoning_step|>
Title: Problem Analysis:
free text
<|/Reasoning_step|>

<|Output|>
Final Answer:
free text
<|/Output|>"""

BLOCK = "<|Reasoning_step|>\nTitle: T:\nbody\n<|/Reasoning_step|>"
OUTPUT = "<|Output|>\nFinal Answer:\nanswer\n<|/Output|>"
TAG_LINE = len("<|Reasoning_step|>\n")

# the rule, a text that breaks it, and where
BROKEN = [
    ("empty", "", 0),
    ("no_reasoning", OUTPUT, 0),
    ("expected_block", "Sure! " + GOLDEN, 0),
    ("expected_block", " " + GOLDEN, 0),
    ("expected_block", "\n" + GOLDEN, 0),
    ("expected_block", "\ufeff" + GOLDEN, 0),
    ("expected_block", "I can't help with that.", 0),
    ("expected_block", BLOCK.replace(">\nTitle", "> \nTitle", 1), 0),
    ("expected_block", BLOCK + "\n\nThen\n\n" + OUTPUT, len(BLOCK) + 2),
    ("expected_block", BLOCK + "\n\n<|Output|> \nFinal Answer:\nx\n<|/Output|>", len(BLOCK) + 2),
    ("expected_block", BLOCK.replace("Reasoning_step", "reasoning_step") + "\n\n" + OUTPUT, 0),
    ("expected_block", STEP_CLOSE, 0),
    ("expected_block", GOLDEN.replace("\n", "\r\n"), 0),
    ("missing_title", f"{STEP_OPEN}\nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE),
    ("missing_title", f"{STEP_OPEN}\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE),
    ("missing_title", f"{STEP_OPEN}\n\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE),
    ("missing_title", f"{STEP_OPEN}\n\nTitle: T:\nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE),
    ("missing_title", f"{STEP_OPEN}\n Title: T:\nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE),
    ("missing_title", f"{STEP_OPEN}\ntitle: T:\nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE),
    ("missing_title", f"{STEP_OPEN}\nTitle:T:\nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE),
    ("empty_title", f"{STEP_OPEN}\nTitle: \nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 7),
    ("empty_title", f"{STEP_OPEN}\nTitle:  \t \nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 7),
    ("empty_body", f"{STEP_OPEN}\nTitle: T:\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 9),
    ("empty_body", f"{STEP_OPEN}\nTitle: T:\n\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 9),
    ("empty_body", f"{STEP_OPEN}\nTitle: T:\n \n\t\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 9),
    ("missing_final_answer", f"{BLOCK}\n\n<|Output|>\nanswer\n<|/Output|>", len(BLOCK) + 13),
    ("missing_final_answer", f"{BLOCK}\n\n<|Output|>\n<|/Output|>", len(BLOCK) + 13),
    ("missing_final_answer", f"{BLOCK}\n\n<|Output|>\nFinal Answer: x\n<|/Output|>", len(BLOCK) + 13),
    ("missing_final_answer", f"{BLOCK}\n\n<|Output|>\n\nFinal Answer:\nx\n<|/Output|>", len(BLOCK) + 13),
    ("empty_output", f"{BLOCK}\n\n<|Output|>\nFinal Answer:\n<|/Output|>", len(BLOCK) + 26),
    ("empty_output", f"{BLOCK}\n\n<|Output|>\nFinal Answer:\n \n\n<|/Output|>", len(BLOCK) + 26),
    ("nested_tag", f"{STEP_OPEN}\nTitle: T:\na {OUTPUT_OPEN} b\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 12),
    ("nested_tag", f"{STEP_OPEN}\nTitle: T:\nbody\n\n{OUTPUT}", TAG_LINE + 16),
    ("nested_tag", f"{STEP_OPEN}\nTitle: T:\nbody\n{OUTPUT_CLOSE}\n\n{OUTPUT}", TAG_LINE + 15),
    ("nested_tag", f"{BLOCK}\n\n<|Output|>\nFinal Answer:\n{STEP_OPEN}\n<|/Output|>", len(BLOCK) + 27),
    ("nested_tag", f"{STEP_OPEN}\nTitle: {STEP_OPEN}:\nbody\n{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 7),
    ("unclosed_block", f"{STEP_OPEN}\nTitle: T:\nbody", TAG_LINE + 14),
    ("unclosed_block", f"{STEP_OPEN}\nTitle: T:\nbody{STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 14),
    ("unclosed_block", f"{STEP_OPEN}\nTitle: T:\nbody\n {STEP_CLOSE}\n\n{OUTPUT}", TAG_LINE + 16),
    ("unclosed_block", GOLDEN.removesuffix(OUTPUT_CLOSE), len(GOLDEN) - len(OUTPUT_CLOSE)),
    ("bad_separator", BLOCK + OUTPUT, len(BLOCK)),
    ("bad_separator", BLOCK + "\n" + OUTPUT, len(BLOCK)),
    ("bad_separator", BLOCK + "\n\n\n" + OUTPUT, len(BLOCK)),
    ("bad_separator", BLOCK + "\n \n" + OUTPUT, len(BLOCK)),
    ("bad_separator", BLOCK + " \n\n" + OUTPUT, len(BLOCK)),
    ("bad_separator", BLOCK + "\n\n " + OUTPUT, len(BLOCK)),
    ("bad_separator", BLOCK + "\r\n\r\n" + OUTPUT, len(BLOCK)),
    ("missing_output", BLOCK, len(BLOCK)),
    ("missing_output", BLOCK + "\n\n", len(BLOCK) + 2),
    ("missing_output", BLOCK + "\n\n" + BLOCK, 2 * len(BLOCK) + 2),
    ("trailing_text", GOLDEN + "\n", len(GOLDEN)),
    ("trailing_text", GOLDEN + " ", len(GOLDEN)),
    ("trailing_text", GOLDEN + "<|im_end|>", len(GOLDEN)),
    ("trailing_text", GOLDEN + "\n\n" + OUTPUT, len(GOLDEN)),
    ("trailing_text", GOLDEN + "\n\n" + GOLDEN, len(GOLDEN)),
    ("trailing_text", f"{BLOCK}\n\n{OUTPUT}\n\n{BLOCK}", len(BLOCK) + 2 + len(OUTPUT)),
]


def _visible(text: str) -> bool:
    return not is_blank(text) and not any(tag in text for tag in TAGS)


# Pieces of the grammar among arbitrary characters, so that text often looks like what it must not be taken for.
_PIECES = st.sampled_from(
    ["Title: ", "Final Answer:", "\n", "\n\n", " ", "<|", "|>", "<|/", "Output|>", "\r", "\u2028"]
)
_TEXTS = st.lists(st.text(max_size=6) | _PIECES, max_size=5).map("".join)
TITLES = _TEXTS.filter(lambda text: _visible(text) and "\n" not in text)
BODIES = _TEXTS.filter(_visible)
STEPS = st.lists(st.builds(Step, TITLES, BODIES), min_size=1, max_size=4).map(tuple)
COMPLETIONS = st.builds(Completion, STEPS, BODIES)
SOUP = st.lists(
    st.sampled_from([*TAGS, "\n", "\n\n", "Title: ", "Final Answer:\n", "word", " ", BLOCK, OUTPUT]), max_size=12
).map("".join)

quick = settings(max_examples=60)


def refusal(text: str) -> GrammarError:
    with pytest.raises(GrammarError) as caught:
        parse(text)
    assert 0 <= caught.value.position <= len(text)
    return caught.value


def tag_positions(text: str) -> list[tuple[int, str]]:
    """Find the tags in order, each as (position, tag)."""
    return sorted((place, tag) for tag in TAGS for place in range(len(text)) if text.startswith(tag, place))


def test_golden_example_of_the_design() -> None:
    completion = Completion((Step("Problem Analysis:", "free text"),), "free text")
    assert parse(GOLDEN) == completion
    assert render(*completion) == GOLDEN
    assert split_steps(GOLDEN) == [
        "<|Reasoning_step|>\nTitle: Problem Analysis:\nfree text\n<|/Reasoning_step|>",
        "\n\n<|Output|>\nFinal Answer:\nfree text\n<|/Output|>",
    ]


def test_the_tags_are_the_four_of_the_paper() -> None:
    assert TAGS == ("<|Reasoning_step|>", "<|/Reasoning_step|>", "<|Output|>", "<|/Output|>")


@given(COMPLETIONS)
@example(Completion((Step(" T", "\n\nbody\n\n"), Step("T:\r", " \tbody ")), "\n answer\r\n\n"))
@example(Completion((Step("Title: Title: ", "Title: \nFinal Answer:\n"),), "Final Answer:\nFinal Answer:\n"))
@settings(max_examples=150)
def test_parse_undoes_render(completion: Completion) -> None:
    text = render(*completion)
    assert parse(text) == completion
    assert render(*parse(text)) == text
    assert is_grammatical(text)


@given(SOUP | _TEXTS | COMPLETIONS.map(lambda completion: render(*completion)))
@settings(max_examples=150)
def test_any_text_is_refused_or_comes_back_byte_for_byte(text: str) -> None:
    if is_grammatical(text):
        assert render(*parse(text)) == text
    else:
        assert refusal(text).rule in RULES


@given(SOUP | _TEXTS | COMPLETIONS.map(lambda completion: render(*completion)))
@settings(max_examples=150)
def test_steps_joined_are_the_text(text: str) -> None:
    pieces = split_steps(text)
    assert "".join(pieces) == text
    assert all(piece.endswith((STEP_CLOSE, OUTPUT_CLOSE)) for piece in pieces[:-1])
    assert all(sum(piece.count(tag) for tag in (STEP_CLOSE, OUTPUT_CLOSE)) <= 1 for piece in pieces)
    assert "" not in pieces


@given(COMPLETIONS)
@quick
def test_a_completion_has_a_step_per_block_and_only_the_last_is_terminal(completion: Completion) -> None:
    pieces = split_steps(render(*completion))
    assert len(pieces) == len(completion.steps) + 1
    assert [closes_output(piece) for piece in pieces] == [False] * len(completion.steps) + [True]
    assert [step_title(piece) for piece in pieces[:-1]] == [step.title for step in completion.steps]


@pytest.mark.parametrize(("rule", "text", "position"), BROKEN)
def test_a_broken_text_names_rule_and_position(rule: str, text: str, position: int) -> None:
    error = refusal(text)
    assert (error.rule, error.position) == (rule, position)
    assert repr(rule) in str(error)
    assert not is_grammatical(text)


def test_every_rule_is_broken_by_some_text() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


@given(COMPLETIONS, st.data())
@quick
def test_a_dropped_tag_is_refused(completion: Completion, data: st.DataObject) -> None:
    text = render(*completion)
    place, tag = data.draw(st.sampled_from(tag_positions(text)))
    error = refusal(text[:place] + text[place + len(tag) :])
    opening = "bad_separator" if place else "expected_block"  # the line break of the lost tag makes the gap too wide
    rules = {STEP_OPEN: opening, OUTPUT_OPEN: opening, STEP_CLOSE: "nested_tag", OUTPUT_CLOSE: "unclosed_block"}
    assert error.rule == rules[tag]


@given(COMPLETIONS, st.data())
@quick
def test_a_doubled_tag_is_refused(completion: Completion, data: st.DataObject) -> None:
    text = render(*completion)
    place, tag = data.draw(st.sampled_from(tag_positions(text)))
    error = refusal(text[:place] + tag + text[place:])
    expected = {
        STEP_OPEN: ("expected_block", place),
        OUTPUT_OPEN: ("expected_block", place),
        STEP_CLOSE: ("bad_separator", place + len(tag)),
        OUTPUT_CLOSE: ("trailing_text", place + len(tag)),
    }
    assert (error.rule, error.position) == expected[tag]


@given(COMPLETIONS, st.data())
@quick
def test_a_block_without_title_line_is_refused(completion: Completion, data: st.DataObject) -> None:
    text = render(*completion)
    index = data.draw(st.integers(0, len(completion.steps) - 1))
    title, body = completion.steps[index].title, completion.steps[index].body
    assume(not body.startswith("Title: "))
    start = [place for place, tag in tag_positions(text) if tag == STEP_OPEN][index] + TAG_LINE
    error = refusal(text[:start] + text[start + len(f"Title: {title}\n") :])
    assert (error.rule, error.position) == ("missing_title", start)


@given(COMPLETIONS, st.sampled_from(["", " ", "\n", "\t\n \n", "\u3000"]), st.data())
@quick
def test_blanks_where_text_belongs_are_refused(completion: Completion, blank: str, data: st.DataObject) -> None:
    steps = list(completion.steps)
    index = data.draw(st.integers(0, len(steps) - 1))
    title, body = steps[index].title, steps[index].body
    for rule, step, output in [
        ("empty_body", Step(title, blank), completion.output),
        ("empty_title", Step(blank.replace("\n", " "), body), completion.output),
        ("empty_output", Step(title, body), blank),
    ]:
        with pytest.raises(GrammarError) as caught:
            render([*steps[:index], step, *steps[index + 1 :]], output)
        assert caught.value.rule == rule


@given(COMPLETIONS, st.text(min_size=1))
@quick
def test_text_after_the_output_is_refused(completion: Completion, tail: str) -> None:
    text = render(*completion)
    error = refusal(text + tail)
    assert (error.rule, error.position) == ("trailing_text", len(text))


@given(COMPLETIONS, st.sampled_from(["", "\n", "\n\n\n", "\n\n\n\n", " \n\n", "\n \n", "\r\n\r\n", " "]), st.data())
@quick
def test_another_separator_is_refused(completion: Completion, separator: str, data: st.DataObject) -> None:
    text = render(*completion)
    ends = [place + len(tag) for place, tag in tag_positions(text) if tag == STEP_CLOSE]
    end = data.draw(st.sampled_from(ends))
    error = refusal(text[:end] + separator + text[end + 2 :])
    assert (error.rule, error.position) == ("bad_separator", end)


@pytest.mark.slow
@given(COMPLETIONS)
@quick
def test_a_completion_without_output_is_refused(completion: Completion) -> None:
    text = render(*completion)
    reasoning = text[: text.index(OUTPUT_OPEN)]
    assert (refusal(reasoning).rule, refusal(reasoning).position) == ("missing_output", len(reasoning))
    trimmed = reasoning.removesuffix("\n\n")
    assert (refusal(trimmed).rule, refusal(trimmed).position) == ("missing_output", len(trimmed))


@given(COMPLETIONS)
@settings(max_examples=30)
def test_a_completion_cut_anywhere_is_refused(completion: Completion) -> None:
    text = render(*completion)
    tags = tag_positions(text)
    for cut in range(len(text)):
        error = refusal(text[:cut])
        assert error.rule == _rule_of_a_cut(tags, cut)
        assert error.position == (_begun_block(tags, cut) if error.rule in {"expected_block", "bad_separator"} else cut)


def _rule_of_a_cut(tags: list[tuple[int, str]], cut: int) -> str:
    if cut == 0:
        return "empty"
    place, tag = max(found for found in tags if found[0] < cut)
    if tag in {STEP_OPEN, OUTPUT_OPEN}:  # the line break belongs to the tag
        return "unclosed_block" if cut > place + len(tag) else "expected_block"
    behind = cut - place - len(tag)
    if behind < 0:
        return "unclosed_block"
    return "bad_separator" if behind == 1 else "missing_output"


def _begun_block(tags: list[tuple[int, str]], cut: int) -> int:
    """Where the tag begins that a cut falls into, or the separator."""
    place, tag = max(found for found in tags if found[0] < cut)
    return place if tag in {STEP_OPEN, OUTPUT_OPEN} else place + len(tag)


@given(COMPLETIONS, st.sampled_from(TAGS), st.data())
@quick
def test_a_tag_inside_a_body_is_refused(completion: Completion, tag: str, data: st.DataObject) -> None:
    text = render(*completion)
    index = data.draw(st.integers(0, len(completion.steps) - 1))
    start = [place for place, found in tag_positions(text) if found == STEP_OPEN][index] + TAG_LINE
    start += len(f"Title: {completion.steps[index].title}\n")
    place = start + data.draw(st.integers(0, len(completion.steps[index].body)))
    error = refusal(text[:place] + tag + text[place:])
    if tag != STEP_CLOSE:
        assert (error.rule, error.position) == ("nested_tag", place)
    elif text[place - 1] != "\n":
        assert (error.rule, error.position) == ("unclosed_block", place)
    else:  # it closes the block, and what was the body stands behind it
        assert error.rule in {"empty_body", "bad_separator", "expected_block"}


@given(COMPLETIONS, st.sampled_from(TAGS), st.data())
@quick
def test_a_tag_inside_the_answer_is_refused(completion: Completion, tag: str, data: st.DataObject) -> None:
    text = render(*completion)
    start = text.index(OUTPUT_OPEN) + len(f"{OUTPUT_OPEN}\nFinal Answer:\n")
    place = start + data.draw(st.integers(0, len(completion.output)))
    error = refusal(text[:place] + tag + text[place:])
    if tag != OUTPUT_CLOSE:
        assert (error.rule, error.position) == ("nested_tag", place)
    else:
        assert error.rule in {"unclosed_block", "empty_output", "trailing_text"}


@pytest.mark.parametrize("title", ["two\nlines", "\nT:", "T:\n"])
def test_render_refuses_a_title_of_two_lines(title: str) -> None:
    with pytest.raises(GrammarError):
        render([Step(title, "body")], "answer")


def test_render_refuses_no_steps() -> None:
    with pytest.raises(GrammarError) as caught:
        render([], "answer")
    assert caught.value.rule == "no_reasoning"


@pytest.mark.parametrize("field", ["title", "body", "output"])
@pytest.mark.parametrize("tag", TAGS)
def test_render_refuses_tags_in_its_parts(field: str, tag: str) -> None:
    parts = {"title": "T:", "body": "body", "output": "answer"} | {field: f"some {tag} text"}
    with pytest.raises(GrammarError):
        render([Step(parts["title"], parts["body"])], parts["output"])


def test_render_names_the_tags_when_a_body_smuggles_in_a_block() -> None:
    smuggled = f"a\n{STEP_CLOSE}\n\n{STEP_OPEN}\nTitle: U:\nb"
    with pytest.raises(GrammarError) as caught:
        render([Step("T:", smuggled)], "answer")
    assert caught.value.rule == "nested_tag"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (GOLDEN, "free text"),
        ("", ""),
        ("  plain refusal \n", "plain refusal"),
        (BLOCK, ""),
        (BLOCK + "\n\nI stopped thinking.", "I stopped thinking."),
        (BLOCK + "\n\n<|Output|>\nFinal Answer:\ncut in the mid", "cut in the mid"),
        (BLOCK + "\n\n<|Output|>\nno lead\n<|/Output|>", "no lead"),
        (GOLDEN + "<|im_end|> and more", "free text"),
        (f"{BLOCK}\n\n{OUTPUT}\n\n{BLOCK}\n\n<|Output|>\nFinal Answer:\nsecond\n<|/Output|>", "second"),
        (f"{OUTPUT}\n\n{BLOCK}\n\nafterthought", "afterthought"),
        ("<|Output|>\nFinal Answer:\n<|/Output|>", ""),
        ("<|Output|>\nFinal Answer:\nFinal Answer:\nx\n<|/Output|>", "Final Answer:\nx"),
        ("<|Output|>", ""),
        ("answer<|/Output|>junk", "answer"),
    ],
)
def test_final_answer_is_what_a_reader_sees(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@given(COMPLETIONS)
@quick
def test_final_answer_of_a_sound_completion_is_its_output(completion: Completion) -> None:
    output = completion.output.strip()
    assume(not output.startswith("Final Answer:"))
    assert final_answer(render(*completion)) == output


@given(SOUP | _TEXTS)
@quick
def test_final_answer_of_anything_has_no_tag_that_ends_it(text: str) -> None:
    answer = final_answer(text)
    assert answer == answer.strip()
    assert answer in text
    assert not any(tag in answer for tag in (STEP_CLOSE, OUTPUT_OPEN, OUTPUT_CLOSE))


@pytest.mark.parametrize(
    ("step", "title"), [("", ""), (BLOCK, "T:"), ("\n\n" + BLOCK, "T:"), (OUTPUT, ""), ("no title", "")]
)
def test_step_title(step: str, title: str) -> None:
    assert step_title(step) == title
