"""From a YAML file to a recipe; a mistake is named by its key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stairdata.recipe.recipe import Recipe
from stairdata.recipe.section import SECRET, UNNAMED
from stairdata_schemas.errors import RecipeError, UsageError, nearest, quote
from stairdata_schemas.formats import yaml_core
from stairdata_schemas.formats.bounded import read_text
from stairdata_schemas.formats.limits import NOTE_BYTES
from stairdata_schemas.secrets.redaction import redact

RecipeT = TypeVar("RecipeT", bound=Recipe)
PACKAGED = Path(__file__).parent.parent / "recipes"


def packaged_recipe(path: Path | None) -> Path | None:
    """Return the recipe that comes with the package, where a bare name is given and no such file exists.

    Raises:
        RecipeError: a bare name that is neither.
    """
    if path is None or path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    names = sorted(file.stem for file in PACKAGED.glob("*.yaml"))
    if path.name not in names:
        raise RecipeError(
            f"there is no recipe {quote(path.name)}: no such file, and the included ones are {', '.join(names)}"
        )
    return PACKAGED / f"{path.name}.yaml"


def load_recipe(model: type[RecipeT], path: Path | None, overrides: list[str]) -> RecipeT:
    """Read a recipe and apply `key.key=value` overrides, whose values are YAML.

    Raises:
        RecipeError: the file can't be read, is no YAML, or has an unknown key or a wrong value.
        UsageError: an override that isn't `key=value`.
    """
    data = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply(data, override)
    return parse_recipe(model, data, path)


def parse_recipe(model: type[RecipeT], data: Mapping[str, Any], path: Path | None = None) -> RecipeT:
    """Make a recipe of its sections.

    Args:
        model: the recipe's class.
        data: the sections.
        path: the file that they come from, for messages.

    Raises:
        RecipeError: an unknown key or a wrong value.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, model, path, dict(data))) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml_core.load(read_text(path, NOTE_BYTES, "utf-8-sig"))
    except FileNotFoundError as error:
        raise RecipeError(f"the recipe {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} can't be read: {error}") from error
    except yaml_core.YamlKeyTwiceError as error:
        raise RecipeError(f"the recipe {path} can't be used: {error}") from error
    except yaml_core.UnreadableYamlError as error:
        raise RecipeError(f"the recipe {path} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RecipeError(f"the recipe {path} has to be a mapping of sections, found {quote(redact(_as_text(data)))}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {quote(redact(override))}: write key.key=value, such as trees.iterations=50")
    *path, last = key.split(".")
    try:
        value = yaml_core.load(text)
    except yaml_core.YamlKeyTwiceError as error:
        raise UsageError(f"--set {quote(redact(override))}: {error}") from error
    except yaml_core.UnreadableYamlError as error:
        raise UsageError(f"--set {quote(redact(override))}: the value is not YAML; quote it") from error
    section = data
    for name in path:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {quote(redact(override))}: {name!r} is not a section")
        section = inner
    section[last] = value


def _explain(error: ValidationError, model: type[BaseModel], path: Path | None, data: dict[str, Any]) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != UNNAMED)
    source = f"recipe {path}" if path else "recipe"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        close = nearest(str(first["loc"][-1]), known)
        hint = f"did you mean {close!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{source}: unknown key {where!r}; {hint}"
    if first["type"] == SECRET:
        return f"{source}: {where}: {first['msg']}"
    value = first["input"] if first["loc"] else data
    return f"{source}: {where or 'top level'}: {first['msg']}, found {quote(redact(_as_text(value)))}"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Follow a location through nested sections; list items and unions lead to the section inside them."""
    current: Any = model
    for part in location:
        if isinstance(part, str) and part in getattr(current, "model_fields", {}):
            current = _section_of(current.model_fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arguments = getattr(annotation, "__args__", ())
    return next((found for found in map(_section_of, arguments) if found is not None), None)
