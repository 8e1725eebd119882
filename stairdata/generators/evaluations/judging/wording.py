"""The words in which rubrics and policies are put to a model: ours, or a file's."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from pathlib import Path

import jinja2

from stairdata.generators.evaluations.judging.judgement import JudgedAnswer, Question, ask_user
from stairdata.generators.evaluations.judging.rubrics import RUBRICS, Rubric
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata.recipe.judges import GUARDS_WITH_POLICY, EvaluationJudge, GuardName
from stairdata_schemas.errors import RecipeError, quote
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import NOTE_BYTES
from stairdata_schemas.templating.sandbox import BoundedTemplate

POLICY_VERSION = 1
HASH_DIGITS = 8
_NAMES = {
    "prompt": ("prompt", "question", "instruction", "forbidden_prompt"),
    "answer": ("answer", "response", "completion", "predicted_answer"),
    "reference_answer": ("reference_answer", "target"),
    "first": ("first", "output_1"),
    "second": ("second", "output_2"),
}
_MEANING = {f"{{{name}}}": variable for variable, names in _NAMES.items() for name in names}
_PLACEHOLDER = re.compile("|".join(map(re.escape, _MEANING)))


class RubricWords:
    """A rubric in words.

    A file of the recipe's with `{{` in it is a jinja template; another one has placeholders such as {response}, as
    published rubrics do. Values are never parsed as templates.

    Raises:
        RecipeError: a file that can't be read, or is no template of the known variables.
    """

    def __init__(self, rubric: Rubric, path: Path | None) -> None:
        self.rubric = rubric
        self._where = str(path or rubric.name)
        name = f"{rubric.name}_v{rubric.version}.jinja"
        self._source = own_source(name) if path is None else source_of(path)
        self.sha256 = hashlib.sha256(self._source.encode()).hexdigest()
        self._template: BoundedTemplate | None = None
        try:
            if "{{" in self._source:
                self._template = BoundedTemplate(self._source, undefined=jinja2.StrictUndefined, autoescape=False)
            elif not _PLACEHOLDER.search(self._source):
                raise ValueError("it says nowhere where the answer goes: no {{ answer }} and no {response}")
            self.questions(JudgedAnswer("prompt", "answer", reference_answer="reference"))
        except RecipeError:
            raise
        except Exception as error:  # whatever a template of the user's may raise
            raise self._unusable(error) from error

    @property
    def name(self) -> str:
        """What rows call it: the rubric, and the first digits of its words' hash."""
        return f"{self.rubric.name}@{self.sha256[:HASH_DIGITS]}"

    def questions(self, answer: JudgedAnswer) -> list[Question]:
        """Put an answer into words: one question, or for a comparison one in each order.

        Raises:
            RecipeError: the file's template can't be rendered.
        """
        reference = answer.reference_answer or ""
        orders = [("first", answer.text, reference), ("second", reference, answer.text)]
        if not self.rubric.is_comparison:
            orders = [("", answer.text, reference)]
        return [
            ask_user(
                "/".join(filter(None, (self.rubric.name, order))),
                self._render(
                    {
                        "prompt": answer.prompt,
                        "answer": answer.text,
                        "reference_answer": reference,
                        "first": first,
                        "second": second,
                    }
                ),
            )
            for order, first, second in orders
        ]

    def _render(self, values: dict[str, str]) -> str:
        if self._template is None:
            return _PLACEHOLDER.sub(lambda found: values[_MEANING[found[0]]], self._source)
        try:
            text = self._template.render(sum(map(len, values.values())), **values)
            text.encode()
        except Exception as error:  # whatever a template of the user's may raise
            raise self._unusable(error) from error
        return text

    def _unusable(self, error: Exception) -> RecipeError:
        return RecipeError(
            f"the rubric {self._where} can't be used: {quote(str(error))}; it may use {', '.join(_NAMES)}, in jinja, "
            "or placeholders such as {forbidden_prompt} and {response}"
        )


def rubric_words(judge: EvaluationJudge, score: BenchmarkScore) -> RubricWords:
    """Return the words in which a judge of kind rubric is asked for a score."""
    rubric = RUBRICS[score]
    return RubricWords(rubric, getattr(judge.template, rubric.name))


def policy_of(guard: GuardName | None, path: Path | None, section: str = "evaluations.judge") -> str | None:
    """Return the policy that a guard is told: of a file, or ours; None where it has its own.

    Args:
        guard: the kind of guard.
        path: of the recipe's file, if it names one.
        section: of the recipe, for messages.

    Raises:
        RecipeError: the file can't be read.
    """
    if guard not in GUARDS_WITH_POLICY:
        return None
    if path is not None:
        return source_of(path, section)
    return own_source(f"policy_v{POLICY_VERSION}.jinja") if guard == "policy" else None


def own_source(name: str) -> str:
    """Return the text of one of our templates."""
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def source_of(path: Path, section: str = "evaluations.judge") -> str:
    """Return the text of a file that a section of the recipe names.

    Raises:
        RecipeError: it can't be read.
    """
    try:
        return read_text(path, NOTE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the file {path} of {section} can't be read: {error}") from error
