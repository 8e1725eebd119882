"""Chat templates of model folders: rendered as transformers does, under limits.

transformers renders in jinja's sandbox without limits, so a folder from a stranger could hang or fill the memory. The
same names, filters and options are offered here (`transformers.utils.chat_template_utils`), so the text is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension

from stairdata_schemas.errors import ModelError, quote
from stairdata_schemas.templating.limits import TemplateLimitError
from stairdata_schemas.templating.sandbox import BoundedTemplate

if TYPE_CHECKING:
    from jinja2.parser import Parser

MESSAGE_SHOWN = 300
_TEMPLATES_KEPT = 16
_TRANSFORMERS = "transformers.tokenization_utils_base"
_DATE_FORMAT = 100


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **variables: Any
) -> str:
    """Render a chat with the tokenizer's own template.

    Args:
        tokenizer: one of transformers, or something with `apply_chat_template`, which is called as it is.
        messages: each with `role` and `content`.
        add_generation_prompt: end with what comes before an answer.
        variables: what else the template may use.

    Raises:
        ModelError: the template is none, or raises, or takes more than it may: see `limits`.
    """
    try:
        if getattr(type(tokenizer).apply_chat_template, "__module__", None) != _TRANSFORMERS:
            text: str = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
            )
            return text
        template = _compile(tokenizer.get_chat_template())
        return template.render(
            sum(len(message["content"]) for message in messages),
            **tokenizer.special_tokens_map,
            **variables,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # whatever a template may raise
        size = max(len(message["content"]) for message in messages)
        raise ModelError(
            f"the chat template of {quote(getattr(tokenizer, 'name_or_path', '') or 'the tokenizer')} can't be used "
            f"for a message of {size} characters: {quote(_reason(error), MESSAGE_SHOWN)}; {_remedy(messages)}"
        ) from error


@lru_cache(maxsize=_TEMPLATES_KEPT)
def _compile(source: str) -> BoundedTemplate:
    return BoundedTemplate(
        source,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
        filters={"tojson": _to_json},
        names={"raise_exception": _raise_exception, "strftime_now": _format_now},
    )


class _Generation(Extension):
    """The tag `generation`: TRL finds the assistant's part by it, and it leaves the text as it is."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON; jinja's own filter escapes what HTML could read; chat templates are no HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _format_now(format: str) -> str:
    if len(format) > _DATE_FORMAT:
        raise TemplateLimitError(f"it formats the date in more than {_DATE_FORMAT} characters")
    return datetime.now().strftime(format)


def _remedy(messages: Sequence[Mapping[str, str]]) -> str:
    roles = [message["role"] for message in messages]
    if roles in (["user"], ["user", "assistant"]):  # what every stage renders
        return "use a model whose template renders one user turn without a system message"
    return "some templates take no system message, or only turns of user and assistant that alternate"


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or calls itself"
    if isinstance(error, TemplateLimitError | jinja2.TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}"
