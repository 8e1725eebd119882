"""Templates that strangers wrote: each ends soon, stays small, and is one message."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from stairdata_schemas.errors import ModelError
from stairdata_schemas.rendering import DATE_STRING, load_tokenizer
from stairdata_schemas.templating.chat_templates import render_chat
from stairdata_schemas.templating.limits import TemplateLimitError
from stairdata_schemas.templating.sandbox import BoundedTemplate
from tests.security.measured import MEBIBYTE, STAIRDATA, run_measured

LARGE_TEXT = "a text of more than"
LARGE_LIST = "a list of more than"
STEPS = "steps"
GROW = "{% set ns = namespace(x=['l'], t='tttttttttt') %}{% for i in range(60) %}GROWN{% endfor %}"
LONG = "{% set x = 'a' * 900000 %}"
MANY = "{% for i in range(99999) %}"

HOSTILE = {
    "multiply": ("{{ 'a' * 10**10 }}", LARGE_TEXT),
    "multiply a list": ("{{ ([1] * 10**9) | length }}", LARGE_TEXT),
    "multiply a safe text": ("{{ ('a' | safe) * 10**10 }}", LARGE_TEXT),
    "power": ("{{ 7 ** (10 ** 9) }}", "a whole number"),
    "squares": ("{% set n = namespace(x=7) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "whole"),
    "long range": ("{% for i in range(10**12) %}{% endfor %}", "Range too big"),
    "nested loops": (MANY * 3 + "{% endfor %}" * 3, STEPS),
    "loop whose items are all left out": (MANY + "{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}", STEPS),
    "filters that drop all": (MANY + "{{ range(99999) | select('lt', 0) | list }}{% endfor %}", STEPS),
    "% with a width": ("{{ '%1000000000d' % 1 }}", LARGE_TEXT),
    "% with a width from outside": ("{{ '%*d' % (10**9, 1) }}", LARGE_TEXT),
    "% with a key that holds brackets": ("{{ '%(a(b))1000000000d' % {'a(b)': 1} }}", LARGE_TEXT),
    "format filter": ("{{ '%1000000000d' | format(1) }}", LARGE_TEXT),
    "format method": ("{{ '{:1000000000}'.format(1) }}", LARGE_TEXT),
    "format method, width from outside": ("{{ '{:{}}'.format(1, 10**9) }}", LARGE_TEXT),
    "format_map": ("{{ '{a:>999999999}'.format_map({'a': 1}) }}", LARGE_TEXT),
    "center": ("{{ 'a' | center(10**9) }}", LARGE_TEXT),
    "center method": ("{{ 'a'.center(10**9) }}", LARGE_TEXT),
    "center through map": ("{{ ['a'] | map('center', 10**9) | list }}", LARGE_TEXT),
    "center through attr": ("{{ ('a' | attr('center'))(10**9) }}", LARGE_TEXT),
    "center of a block": ("{% filter center(10**9) %}a{% endfilter %}", LARGE_TEXT),
    "expandtabs": ("{{ '\\t'.expandtabs(tabsize=10**9) }}", LARGE_TEXT),
    "indent": ("{{ 'a\\nb' | indent(10**9) }}", LARGE_TEXT),
    "join": (LONG + "{{ range(99999) | join(x) }}", LARGE_TEXT),
    "join method": (LONG + "{{ x.join(['a'] * 9999) }}", LARGE_TEXT),
    "replace": (LONG + "{{ x | replace('', x) }}", LARGE_TEXT),
    "replace method": (LONG + "{{ x.replace('a', x) }}", LARGE_TEXT),
    "tojson": ("{{ {'a': [1]} | tojson(indent=10**9) }}", LARGE_TEXT),
    "batch": ("{{ [1] | batch(10**9, 'x') | list }}", LARGE_TEXT),
    "slice": ("{{ [1] | slice(10**9) | list }}", LARGE_TEXT),
    "wordwrap": ("{% set x = 'a' * 65000 %}{{ x | wordwrap(1, wrapstring=x) }}", LARGE_TEXT),
    "doubling by ~": (GROW.replace("GROWN", "{% set ns.t = ns.t ~ ns.t %}"), LARGE_TEXT),
    "doubling by +": (GROW.replace("GROWN", "{% set ns.t = ns.t + ns.t %}"), LARGE_TEXT),
    "doubling by a block": (GROW.replace("GROWN", "{% set ns.t %}{{ ns.t }}{{ ns.t }}{% endset %}"), LARGE_TEXT),
    "list that holds itself twice": (GROW.replace("GROWN", "{% set ns.x = [ns.x, ns.x] %}") + "{{ ns.x }}", LARGE_LIST),
    "tuple": (GROW.replace("GROWN", "{% set ns.x = (ns.x, ns.x) %}") + "{{ ns.x }}", LARGE_LIST),
    "dictionary": (GROW.replace("GROWN", "{% set ns.x = dict(a=ns.x, b=ns.x) %}") + "{{ ns.x }}", LARGE_LIST),
    "arguments of a macro": (
        "{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"
        + GROW.replace("GROWN", "{{ m(ns.x, ns.x) }}")
        + "{{ ns.x }}",
        LARGE_LIST,
    ),
    "text in a loop in a block": ("{% set x %}" + MANY + "y" * 50_000 + "{% endfor %}{% endset %}{{ x }}", LARGE_TEXT),
    "copies kept": (LONG + "".join(f"{{% set a{i} = x[1:] %}}" for i in range(50)), LARGE_TEXT),
    "macro that calls itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself"),
    "macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        STEPS,
    ),
    "brackets": ("{{ " + "(" * 50_000 + " }}", "nested too deeply"),
    "very long": ("a" * 200_000, "131,072"),
    "bytes": ("{{ 'a'.encode() }}", "encode()"),
    "to_bytes": ("{{ (1).to_bytes(10**9, 'big') }}", "to_bytes()"),
    "error of its own": ("{{ raise_exception('system first') }}", "system first"),
    "error of Python's": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "no template": ("{% for %}", "Expected an expression"),
    "Python's insides": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "another file": ("{% include '/etc/passwd' %}", "loader"),
}
SLOW = {"filters that drop all", "arguments of a macro", "tuple", "dictionary"}
MOST_BYTES = 900 * MEBIBYTE
MOST_SECONDS = 60.0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in HOSTILE]
)
def test_a_hostile_template_is_ended(name: str, tokenizer_folder: Path) -> None:
    source, said = HOSTILE[name]
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = source
    with pytest.raises(ModelError, match="the chat template of") as caught:
        render_chat(tokenizer, [{"role": "user", "content": "Why?"}], add_generation_prompt=True)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_template_that_waits_for_a_word_in_the_prompt(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = "{% if 'now' in messages[0].content %}{{ 'a' * 10**10 }}{% endif %}"
    assert render_chat(tokenizer, [{"role": "user", "content": "later"}], add_generation_prompt=True) == ""
    with pytest.raises(ModelError, match=LARGE_TEXT):
        render_chat(tokenizer, [{"role": "user", "content": "now"}], add_generation_prompt=True)


TEMPLATES = files("trl") / "chat_templates"
QUICK = {"gptoss.jinja", "llama3.jinja", "qwen2_5.jinja", "qwen3.jinja"}
KNOWN = sorted(path.name for path in TEMPLATES.iterdir() if path.name.endswith(".jinja") and "llava" not in path.name)
"""Those of llava take no plain text."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in KNOWN]
)
def test_templates_of_known_models_render_as_in_transformers(name: str, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = (TEMPLATES / name).read_text(encoding="utf-8")
    for content in ("Why?", " a\n\n", '<think>x</think> "q" \u202e', "x" * 100_000):
        question = {"role": "user", "content": content}
        for messages, prompts in ([question], True), ([question, {"role": "assistant", "content": "<a> b"}], False):
            options: dict[str, Any] = {"add_generation_prompt": prompts, "date_string": DATE_STRING}
            expected = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            assert render_chat(tokenizer, messages, **options) == expected


def test_limits_grow_with_what_is_given() -> None:
    template = BoundedTemplate("{{ prompt * 10 }}")
    prompt = "x" * 500_000
    assert len(template.render(len(prompt), prompt=prompt)) == 5_000_000
    with pytest.raises(TemplateLimitError, match=LARGE_TEXT):
        template.render(0, prompt=prompt)


ON_THE_COMMAND_LINE = ["multiply", "nested loops", "doubling by a block", "error of its own", "brackets"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "multiply" else []) for name in ON_THE_COMMAND_LINE]
)
def test_a_hostile_model_folder_is_one_message(name: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(HOSTILE[name][0], encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Why?", "task": "safety"}) + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "prompts:\n  sources: [{path: prompts.jsonl, license: mit}]\n  max_tokens: 50\n  tokenizer: ./model\n",
        encoding="utf-8",
    )
    check_one_message(["build", "prompts", "--recipe", "recipe.yaml"], tmp_path, HOSTILE[name][1])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow]) for name in ("join", "nested loops")])
def test_a_hostile_template_of_a_recipe_is_one_message(name: str, tmp_path: Path) -> None:
    (tmp_path / "ask.jinja").write_text(HOSTILE[name][0], encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "structured_cot:\n  teacher: {base_url: http://127.0.0.1:9/v1, model: m}\n  templates: {safety: ask.jinja}\n",
        encoding="utf-8",
    )
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Why?", "task": "safety"}) + "\n", encoding="utf-8")
    prompts = [*STAIRDATA, "build", "prompts", "--set", "prompts.sources=[{path: prompts.jsonl, license: mit}]"]
    assert run_measured(prompts, tmp_path, limit=MOST_SECONDS).code == 0
    check_one_message(["build", "structured-cot", "--recipe", "recipe.yaml"], tmp_path, HOSTILE[name][1])


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.slow
@pytest.mark.parametrize("text", [f"prompts: {DEEP}", "\n".join(" " * n + "a:" for n in range(1200))])
def test_a_recipe_that_is_nested_too_deep_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    check_one_message(["build", "prompts", "--recipe", "recipe.yaml"], tmp_path, "nested too deep")


def check_one_message(arguments: list[str], folder: Path, said: str) -> None:
    """Run a command, and check that it ends soon with one message, stays small, and writes no new artifact."""
    before = sorted(folder.rglob("manifest.json"))
    ended = run_measured([*STAIRDATA, *arguments], folder, limit=MOST_SECONDS)
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert ended.code == 1, ended.stderr
    assert said in lines[-1]
    assert lines[-1].startswith("error: ")
    assert len(lines) == 1, ended.stderr
    assert ended.peak < MOST_BYTES
    assert ended.seconds < MOST_SECONDS
    assert sorted(folder.rglob("manifest.json")) == before
