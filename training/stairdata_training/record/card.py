"""The model card: README.md of a model folder, out of its training.json.

Figures, switches, fixed words, hashes and the names of data and base model stand in it; no text of prompts or answers,
and no path. A part of the record that is missing, as in a record of an earlier release, is left out of the card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from stairdata_schemas.cards.card import SECTIONS, inline, marked
from stairdata_schemas.files import write_atomic
from stairdata_schemas.licenses import is_identifier, normal
from stairdata_schemas.text.visible import without_invisible
from stairdata_training.held_out import NOT_BETTER, WRONG_WAY
from stairdata_training.record.curves import Curve, curves

CARD_NAME = "README.md"
TITLES = {
    "sft": "STAIR actor after supervised fine-tuning",
    "dpo": "STAIR actor after step-level DPO",
    "prm": "STAIR process reward model",
}
DESCRIPTIONS = {
    "sft": "A language model that thinks in the steps of STAIR's grammar before it answers.",
    "dpo": "A language model that thinks in steps, trained on pairs of steps from the search trees of its predecessor.",
    "prm": "A linear head on a language model that scores a partial or whole answer to a prompt; higher is better.",
}
PIPELINES = {"sft": "text-generation", "dpo": "text-generation", "prm": "text-classification"}
_WORDS = frozenset(
    {"precision", "scheduler", "save_dtype", "loss", "too_long", "bad_rows", "report_to", "prefers", "dtype"}
)
"""Keys whose values are words of ours."""
_TAGS = ("stair", "stairdata", "safety", "alignment")
_LENGTHS = {"half": "half of the rows have at most", "most": "95% of the rows have at most"}
_SUMMARY = ("rows", "tokens", "steps", "seconds")
_FURTHER = ("expected_calibration_error", "better_than_length", "length_rule.prefers", "length_correlation")
"""Held-out measures without an interval."""
_WORD = re.compile(r"[a-z0-9_.-]{1,40}", re.ASCII)
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA = re.compile(r"[0-9a-f]{7,64}", re.ASCII)
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$])")


class _Verbatim(str):
    """Text that goes into the card as it is."""

    __slots__ = ()


class _Measure(NamedTuple):
    """A line of the table of held-out measures."""

    name: str
    value: float
    low: float | None
    high: float | None
    prompts: int
    rows: int


def write_card(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write README.md of a model folder, and the pictures that it shows.

    Args:
        folder: where the model lies.
        record: what training.json holds, or will hold.

    Returns:
        The files that were written.
    """
    pictures = curves(record)
    for picture in pictures:
        write_atomic(folder / picture.file, picture.png)
    write_atomic(folder / CARD_NAME, render_model_card(record, pictures))
    return [folder / CARD_NAME, *(folder / picture.file for picture in pictures)]


def render_model_card(record: Mapping[str, Any], pictures: list[Curve]) -> str:
    """Render the card; each picture is shown under its caption."""
    method = _method(record)
    summary, held_out, base = (_part(record, name) for name in ("summary", "held_out", "base_model"))
    return (
        _environment()
        .get_template("model_card_v1.md.jinja")
        .render(
            head=_Verbatim(yaml.safe_dump(_head(record, method), sort_keys=False, allow_unicode=True, width=110)),
            own={name: _Verbatim(marked(name)) for name in SECTIONS},
            title=TITLES.get(method, "STAIR model"),
            description=DESCRIPTIONS.get(method, "A model that `stairdata train` made."),
            method=method,
            marks=_marks(held_out),
            fingerprint=str(record.get("fingerprint") or "unknown"),
            trainer=_trainer(record) or "unknown",
            parents=[parent for parent in map(_parent, _data(record)) if parent],
            base=_base(base),
            summary={
                name: summary[name] for name in ("rows", "tokens", "steps", "seconds") if _is_figure(summary.get(name))
            },
            first_loss=_figure_or_none(summary.get("first_loss")),
            last_loss=_figure_or_none(summary.get("last_loss")),
            settings=list(_figures(_part(record, "config"))),
            lengths=[(_LENGTHS.get(name, name), figure) for name, figure in _figures(_part(record, "lengths"))],
            weights=list(_figures(_part(record, "weights"))),
            measures=list(_measures(held_out)),
            held_out_data=_parent(_part(held_out, "data")),
            further=[(name, figure) for name, figure in _figures(held_out) if name in _FURTHER],
            environment=list(_environment_facts(_part(record, "environment"))),
            warnings=[str(warning) for warning in _list(record, "warnings")],
            pictures=pictures,
            license=_license(record),
        )
    )


def _head(record: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the YAML at the head, which the Hub reads."""
    base, repos = _part(record, "base_model"), [parent.get("repo") for parent in _data(record)]
    datasets = sorted({repo for repo in repos if isinstance(repo, str) and _HUB_NAME.fullmatch(repo)})
    return {
        "license": _license(record) or "unknown",
        "library_name": "transformers",
        **({"pipeline_tag": PIPELINES[method]} if method in PIPELINES else {}),
        **({"base_model": base["name"]} if _is_on_hub(base) else {}),
        **({"datasets": datasets} if datasets else {}),
        "tags": [
            "stair",
            "stairdata",
            "safety",
            "alignment",
            *([method] if method in PIPELINES else []),
            "arxiv:2502.02384",
        ],
    }


def _license(record: Mapping[str, Any]) -> str | None:
    """Return the licence if the record states one."""
    stated = record.get("license")
    found = normal(stated) if isinstance(stated, str) else None
    return found if found is not None and is_identifier(found) else None


def _method(record: Mapping[str, Any]) -> str:
    return _trainer(record).partition("/")[0]


def _trainer(record: Mapping[str, Any]) -> str:
    """Return the trainer with its number; a record of an earlier release has the method alone."""
    parts = (record, _part(record, "identity"))
    numbered = next((part["trainer"] for part in parts if part.get("trainer")), None)
    return str(numbered or _part(record, "summary").get("method") or "")


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def _list(part: Mapping[str, Any], name: str) -> list[Any]:
    found = part.get(name)
    return found if isinstance(found, list) else []


def _data(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what was trained on, and what that was made from."""
    data = _part(record, "data")
    others = [parent for parent in _list(data, "parents") if isinstance(parent, Mapping)]
    return [data, *others] if data else []


def _parent(data: Mapping[str, Any]) -> str:
    """Return an artifact's reference with its hash and its commit, so far as they are known."""
    reference = data.get("reference") or "@".join(str(data[name]) for name in ("kind", "version") if name in data)
    if not reference:
        return ""
    said = [Path(str(reference)).name if Path(str(reference)).is_absolute() else str(reference)]
    if data.get("content_hash"):
        said.append(f"content {str(data['content_hash'])[:16]}")
    if data.get("repo"):
        said.append(f"on the Hub as {data['repo']}")
    if data.get("commit"):
        said.append(f"commit {data['commit']}")
    return ", ".join(said)


def _base(base: Mapping[str, Any]) -> str | None:
    """Return the start model's name: of a folder its last part alone, since a path says whose machine it was."""
    name = base.get("name")
    if not isinstance(name, str) or not name:
        return None
    if _is_on_hub(base):
        return f"{name} at revision {base['revision']}"
    known = str(base.get("revision"))
    hashed = f" (content {known})" if _SHA.fullmatch(known) else ""
    return f"{Path(name).name or 'unnamed'}, a local folder{hashed}"


def _is_on_hub(base: Mapping[str, Any]) -> bool:
    """Return whether the start model came from the Hub: it has a commit there, and a folder the hash of its content."""
    name, revision = base.get("name"), str(base.get("revision"))
    return isinstance(name, str) and bool(_HUB_NAME.fullmatch(name) and _COMMIT.fullmatch(revision))


def _marks(held_out: Mapping[str, Any]) -> list[str]:
    """Return what has to be said first."""
    marks = [NOT_BETTER] if held_out.get("better_than_length") is False else []
    tasks = held_out.get("wrong_way")
    return [*marks, *(WRONG_WAY.format(task=task) for task in (tasks if isinstance(tasks, list) else []))]


def _measures(values: Mapping[str, Any], prefix: str = "") -> Iterator[_Measure]:
    """Yield every interval of a tree of measures, under its path."""
    for name, value in values.items():
        if not isinstance(value, Mapping):
            continue
        if _is_figure(value.get("value")) and {"low", "high", "prompts", "rows"} <= value.keys():
            low, high = _figure_or_none(value["low"]), _figure_or_none(value["high"])
            yield _Measure(f"{prefix}{name}", value["value"], low, high, value["prompts"], value["rows"])
        else:
            yield from _measures(value, f"{prefix}{name}, ")


def _figures(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the numbers, switches and fixed words: no text of a user's, no path and no address."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield f"{prefix}{name}", str(value).lower()
        elif _is_figure(value):
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)
        elif name in _WORDS and isinstance(value, str) and _WORD.fullmatch(value):
            yield f"{prefix}{name}", value


def _environment_facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _environment_facts(value)
        elif isinstance(value, str | int | float) and value != "":
            yield str(name), str(value)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure_or_none(value: Any) -> float | None:
    return float(value) if _is_figure(value) else None


def escaped(text: str) -> str:
    """Return a name on one line, with nothing in it that markdown or HTML takes for markup."""
    return _MARKUP.sub(r"\\\1", inline(without_invisible(text)))


def _finalize(value: Any) -> Any:
    return escaped(value) if isinstance(value, str) and not isinstance(value, _Verbatim) else value


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata_training.record"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # markdown: names are escaped by `finalize`
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
