"""What a teacher is asked about a prompt."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from stairdata.generators.structured_cot.answer import WrittenAnswer
from stairdata.generators.structured_cot.quality_gate import explain_rule
from stairdata.recipe import Teacher, TemplatesSection
from stairdata.runs.templates import packaged_source, source_of
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import RecipeError, nearest, quote
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import NOTE_BYTES
from stairdata_schemas.kinds import TASKS
from stairdata_schemas.templating.sandbox import BoundedTemplate

TEMPLATE_VERSION = 1
PROMPT_COLUMNS = ["prompt_id", "prompt", "task", "reference_answer", "reference_is_safe", "category"]
DEFAULT_POLICY = "default"
"""Key of the policy for prompts whose category has none."""


class TeacherPrompt(NamedTuple):
    """A prompt to be answered, and what went wrong before."""

    prompt_id: str
    prompt: str
    task: str
    reference_answer: str | None = None
    reference_is_safe: bool | None = None
    category: str | None = None
    failure: str | None = None
    """The rule that an earlier answer broke."""
    ask: int = 0
    """How often it was asked before because of the content."""


class TeacherTemplates:
    """What teachers are asked, by task, behind the policy of the prompt's category where the recipe has one.

    Files of the recipe take the place of the project's own templates. Values are never parsed as templates, policies
    neither, and a file's template runs in a sandbox, under limits of time and size.

    Args:
        section: files of templates.
        policies: files of policies, plain text, by category.

    Raises:
        RecipeError: a file that can't be read, or is no template of the known variables, or a policy without a word.
    """

    def __init__(self, section: TemplatesSection, policies: Mapping[str, Path] | None = None) -> None:
        sources = {}
        for task in TASKS:
            path = getattr(section, task)
            sources[task] = _own_source(task) if path is None else source_of(path)
        self._policies = {category: _policy_of(category, path) for category, path in (policies or {}).items()}
        for part in ("format_text", "failure", *(["policy"] if self._policies else [])):
            sources[part] = _own_source(part)
        texts = sources | {f"policy of {category}": text for category, text in self._policies.items()}
        self.hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        self._section = section
        self._sources = sources
        self._templates = {name: _compile(source, name, section) for name, source in sources.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process makes these templates of; compiled ones can't be sent."""
        return {name: value for name, value in self.__dict__.items() if name != "_templates"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._templates = {name: _compile(source, name, self._section) for name, source in self._sources.items()}

    def ask(self, prompt: TeacherPrompt, teacher: Teacher) -> str:
        """Return what a teacher is asked about a prompt."""
        try:
            parts = [_render(self._templates[prompt.task], _variables(prompt))]
            parts[0].encode()
        except Exception as error:  # whatever a template of the user's may raise
            raise RecipeError(
                f"the template for {prompt.task} can't be used for prompt {prompt.prompt_id}: {quote(str(error))}"
            ) from error
        policy = self._policies.get(prompt.category or DEFAULT_POLICY, self._policies.get(DEFAULT_POLICY))
        if policy is not None:
            parts.insert(0, _render(self._templates["policy"], {"policy": policy}))
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


def _own_source(part: str) -> str:
    return packaged_source(__package__, f"teacher_{part}_v{TEMPLATE_VERSION}")


def _policy_of(category: str, path: Path) -> str:
    try:
        text = read_text(path, NOTE_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"structured_cot.policies.{category}: {path} can't be read: {error}") from error
    if not text:
        raise RecipeError(
            f"structured_cot.policies.{category}: {path} is empty; write the policy, or leave the key out"
        )
    return text


def check_policies(policies: Mapping[str, Path], prompts: Artifact) -> None:
    """Check that each policy is for some prompts.

    Raises:
        RecipeError: no prompt has its category.
    """
    if not policies:
        return
    known = prompts.scan().select("category").unique().drop_nulls().collect()["category"].sort().to_list()
    for category in policies:
        if category != DEFAULT_POLICY and category not in known:
            close = nearest(category, known)
            hint = f"did you mean {quote(close)}" if close else f"known are {', '.join(map(quote, known[:20]))}"
            raise RecipeError(
                f"structured_cot.policies names the category {quote(category)}, which no prompt of {prompts.reference} "
                f"has: {hint}"
            )


def _compile(source: str, name: str, section: TemplatesSection) -> BoundedTemplate:
    """Compile a template, and try it, so that a slip in a file shows before anything is asked."""
    try:
        template = BoundedTemplate(source, undefined=jinja2.StrictUndefined, autoescape=False)
        for reference, is_safe in itertools.product(("answer", None), (True, False, None)):
            tried = TeacherPrompt("0" * 16, "prompt", name, reference, is_safe)
            _render(template, _variables(tried) | {"failure": "", "policy": ""}).encode()
    except Exception as error:  # whatever a template of the user's may raise
        path = getattr(section, name, None)
        raise RecipeError(
            f"the template {path or name} can't be used: {quote(str(error))}; it may use prompt, task, "
            "reference_answer, reference_is_safe and category"
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
        "category": prompt.category,
    }
