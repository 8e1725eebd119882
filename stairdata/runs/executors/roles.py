"""Which of the models that a build asks `--endpoints` names servers of: each has a role."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from stairdata_schemas.errors import UsageError, quote, suggest

if TYPE_CHECKING:
    from stairdata.recipe import ModelServer, Recipe
    from stairdata.recipe.section import Section

SectionT = TypeVar("SectionT", bound="Section")

MAIN_ROLES = {
    "prompts": ("task_judge",),
    "structured_cot": ("teacher",),
    "trees": ("actor",),
    "responses": ("actor",),
    "evaluations": ("actor", "models"),
}
"""By kind: what the model is called that a build is about; its servers need no role."""
ROLES = {
    "prompts": {"twins": "prompts.twins.teacher"},
    "structured_cot": {"judge": "structured_cot.judge"},
    "trees": {"judge": "trees.judge.endpoint", "helpfulness": "trees.judge.helpfulness"},
    "responses": {"prm": "responses.prm"},
    "evaluations": {
        "judge": "evaluations.judge",
        "attacker": "evaluations.attacks.attacker",
        "prm": "responses.prm",
    },
}
"""By kind: the roles of the other models that it may ask, and their keys in the recipe."""


def option_of(role: str) -> str:
    """Return what messages call the option that names the servers of a role."""
    return f"--endpoints {role}" if role else "--endpoints"


def urls_by_role(kind: str, given: Iterable[tuple[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Return the servers that are given for a build, by role.

    Args:
        kind: of the build.
        given: roles and URLs; the role of the model that the build is about may be left empty.

    Returns:
        URLs by role, which is empty for the model that the build is about.

    Raises:
        UsageError: a role that the kind does not know or that is given twice, or one without servers.
    """
    main, others = MAIN_ROLES[kind], ROLES[kind]
    found: dict[str, tuple[str, ...]] = {}
    for given_role, urls in given:
        known = (*main, *others)
        if given_role and given_role not in known:
            raise UsageError(
                f"{option_of(given_role)}: build {kind.replace('_', '-')} asks no model of that role; "
                f"{suggest(given_role, known)}"
            )
        role = "" if given_role in main else given_role
        if role in found:
            raise UsageError(
                f"{option_of(given_role)} is there twice; give all servers of a model in one: {given_role}"
                f"{'=' if given_role else ''}URL,URL"
            )
        if not urls:
            raise UsageError(f"{option_of(given_role)} names no server; give at least one URL")
        found[role] = (urls,) if isinstance(urls, str) else tuple(urls)
        if second := next((url.partition("=")[0] for url in found[role] if "=" in url.partition("://")[0]), None):
            raise UsageError(
                f"{option_of(given_role)} names a second role, {quote(second)}; give each --endpoints one role"
            )
    return found


def model_of(recipe: Recipe, key: str) -> ModelServer | str | None:
    """Return the recipe's words on a model: its server, a folder, or None where it has no such model."""
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name, None)
    named: ModelServer | str | None = found
    return named


def with_model(section: SectionT, key: str, model: ModelServer) -> SectionT:
    """Return a recipe, or a section of one, with another model."""
    name, _, rest = key.partition(".")
    return section.model_copy(update={name: with_model(getattr(section, name), rest, model) if rest else model})
