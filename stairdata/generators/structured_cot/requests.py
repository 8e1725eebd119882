"""What a teacher is asked about a prompt."""

from __future__ import annotations

import hashlib
import itertools
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from stairdata.generators.structured_cot.answer import WrittenAnswer
from stairdata.generators.structured_cot.quality_gate import explain_rule
from stairdata.recipe import Teacher, TemplatesSection
from stairdata_schemas import identity
from stairdata_schemas.errors import RecipeError, quote
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import NOTE_BYTES
from stairdata_schemas.kinds import TASKS
from stairdata_schemas.templating.sandbox import BoundedTemplate

TEMPLATE_VERSION = 1
PROMPT_COLUMNS = ["prompt_id", "prompt", "task", "reference_answer", "reference_is_safe"]


class TeacherPrompt(NamedTuple):
    """A prompt to be answered, and what went wrong before."""

    prompt_id: str
    prompt: str
    task: str
    reference_answer: str | None = None
    reference_is_safe: bool | None = None
    failure: str | None = None
    """The rule that an earlier answer broke."""
    ask: int = 0
    """How often it was asked before because of the content."""


class TeacherTemplates:
    """What teachers are asked, by task; files of the recipe take the place of the project's own.

    Values are never parsed as templates, and a file's template runs in a sandbox, under limits of time and size.

    Raises:
        RecipeError: a file that can't be read, or is no template of the known variables.
    """

    def __init__(self, section: TemplatesSection) -> None:
        own = {task: f"teacher_{task}_v{TEMPLATE_VERSION}.jinja" for task in TASKS}
        sources = {task: _own_source(name) for task, name in own.items()}
        for task in TASKS:
            if (path := getattr(section, task)) is not None:
                sources[task] = _source_of(path)
        for part in ("format_text", "failure"):
            sources[part] = _own_source(f"teacher_{part}_v{TEMPLATE_VERSION}.jinja")
        self.hashes = {name: hashlib.sha256(source.encode()).hexdigest() for name, source in sources.items()}
        self._templates = {name: _compile(source, name, section) for name, source in sources.items()}

    def ask(self, prompt: TeacherPrompt, teacher: Teacher) -> str:
        """Return what a teacher is asked about a prompt."""
        try:
            parts = [_render(self._templates[prompt.task], _variables(prompt))]
            parts[0].encode()
        except Exception as error:  # whatever a template of the user's may raise
            raise RecipeError(
                f"the template for {prompt.task} can't be used for prompt {prompt.prompt_id}: {quote(str(error))}"
            ) from error
        if teacher.format == "text":
            parts.append(_render(self._templates["format_text"], {}))
        if prompt.failure is not None:
            parts.append(_render(self._templates["failure"], {"failure": explain_rule(prompt.failure)}))
        return "".join(parts)


class TeacherRequest(NamedTuple):
    """A request to a teacher, as `Client.chat` takes it."""

    content: str
    max_tokens: int
    seed: int
    options: dict[str, Any]

    @property
    def messages(self) -> list[Any]:
        """The chat."""
        return [{"role": "user", "content": self.content}]


def make_request(prompt: TeacherPrompt, teacher: Teacher, templates: TeacherTemplates, seed: int) -> TeacherRequest:
    """Write the request for a prompt.

    Args:
        prompt: the prompt.
        teacher: who is asked.
        templates: in which words.
        seed: the recipe's.
    """
    options: dict[str, Any] = {} if teacher.temperature is None else {"temperature": teacher.temperature}
    if teacher.format == "json":
        options["response_format"] = response_format()
    asked = identity.request_seed(seed, prompt.prompt_id, 0, prompt.ask)
    return TeacherRequest(templates.ask(prompt, teacher), teacher.max_tokens, asked, options)


@cache
def response_format() -> dict[str, Any]:
    """Return the option that holds a server to the answer's JSON Schema."""
    schema = WrittenAnswer.model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": "structured_cot", "strict": True, "schema": schema}}


def _own_source(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _source_of(path: Path) -> str:
    try:
        return read_text(path, NOTE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the template {path} can't be read: {error}") from error


def _compile(source: str, name: str, section: TemplatesSection) -> BoundedTemplate:
    """Compile a template, and try it, so that a slip in a file shows before anything is asked."""
    try:
        template = BoundedTemplate(source, undefined=jinja2.StrictUndefined, autoescape=False)
        for reference, is_safe in itertools.product(("answer", None), (True, False, None)):
            tried = TeacherPrompt("0" * 16, "prompt", name, reference, is_safe)
            _render(template, _variables(tried) | {"failure": ""}).encode()
    except Exception as error:  # whatever a template of the user's may raise
        path = getattr(section, name, None)
        raise RecipeError(
            f"the template {path or name} can't be used: {quote(str(error))}; it may use prompt, task, "
            "reference_answer and reference_is_safe"
        ) from error
    return template


def _render(template: BoundedTemplate, variables: dict[str, Any]) -> str:
    given = sum(len(value) for value in variables.values() if isinstance(value, str))
    return template.render(given, **variables)


def _variables(prompt: TeacherPrompt) -> dict[str, Any]:
    return {
        "prompt": prompt.prompt,
        "task": prompt.task,
        "reference_answer": prompt.reference_answer,
        "reference_is_safe": prompt.reference_is_safe,
    }
