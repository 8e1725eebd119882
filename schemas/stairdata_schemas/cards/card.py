"""The dataset card: README.md of an artifact or of a Hub repository, generated from manifests and schemas.

What a person wrote between two marked lines, and keys of the YAML head that are not ours, survive when the card is
generated again. No row is ever shown: the card of a gated dataset is public.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
import polars as pl
import yaml

from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import PublishError, quote
from stairdata_schemas.formats import yaml_core
from stairdata_schemas.kinds import polars_schema, row_schema
from stairdata_schemas.manifest import Manifest

DESCRIPTIONS = {
    "prompts": "Prompts for safety alignment, each with its task and source.",
    "structured_cot": "Step-by-step reasoning in a fixed grammar, one completion per row.",
    "trees": "Search trees grown by SI-MCTS: steps, visit counts, values, rollouts and their rewards.",
    "preference_pairs": "Pairs of sibling steps (or trajectories) for step-level DPO, taken from search trees.",
    "prm_pairs": "Pairs of partial or whole answers for a process reward model, taken from search trees.",
    "responses": "Answers of a model to prompts, with all candidates and their scores.",
    "evaluations": "Answers to benchmark prompts, with a judge's assessment.",
    "reviews": "Verdicts of human reviewers, their names replaced by salted hashes.",
}
USES = {
    "prompts": "as input of teachers, of searches and of evaluations",
    "structured_cot": "supervised fine-tuning of a model that is to reason about risk before it answers",
    "trees": "taking preference pairs, and studying how a model's own search values its steps",
    "preference_pairs": "step-level DPO of the model that grew the trees",
    "prm_pairs": "training a process reward model",
    "responses": "comparing models and test-time methods",
    "evaluations": "comparing models on benchmarks",
    "reviews": "measuring how people judge what models and judges say",
}
TRAINED_BY = {"structured_cot": "sft", "preference_pairs": "dpo", "prm_pairs": "prm"}
VIEWS = {
    "chat": "whole answers as conversations, as the Hub's viewer shows them and trainers such as TRL read them",
    "paths": "one row for each path of a tree from its root to a leaf",
}
WRITTEN_BY_PEOPLE = {"prompts", "reviews"}
LIBRARY = "stairdata"
TASK_CATEGORIES = ["text-generation"]
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
SECTIONS = ("introduction", "notes")
GATE = {
    "extra_gated_heading": "Access for safety research",
    "extra_gated_prompt": (
        "These rows hold prompts that ask for harm and what models answer to them. Access is for work that makes "
        "models safer. By asking for it you agree not to use the rows to cause harm or to train a model to cause it, "
        "and not to pass them on outside these terms."
    ),
    "extra_gated_fields": {
        "Full name": "text",
        "Affiliation": "text",
        "Country": "country",
        "What I will use this dataset for": {
            "type": "select",
            "options": ["Safety research", "Training a safer model", "Evaluation or red teaming", "Teaching", "Other"],
        },
        "The use in a few words": "text",
        "I am at least 18 years old": "checkbox",
        "I will use this dataset only to study or reduce harm": "checkbox",
    },
    "extra_gated_button_content": "Ask for access",
}
_DTYPES: Mapping[Any, str] = {
    pl.String: "large_string",
    pl.Boolean: "bool",
    pl.Int32: "int32",
    pl.Int64: "int64",
    pl.Float64: "float64",
    pl.Datetime: "timestamp[us, tz=UTC]",
}
_WORDS = frozenset({"granularity", "kind", "method", "score"})
"""Keys of a configuration whose values are one of ours."""
_OURS = frozenset(
    {
        "license",
        "library_name",
        "task_categories",
        "tags",
        "size_categories",
        "configs",
        "dataset_info",
        "source_datasets",
        *GATE,
    }
)

_HEAD = re.compile(r"\A\ufeff?(?:\s*\n)?---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
"""The YAML head of a card: browsers and Windows editors put a byte order mark before it."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture in the repository."""

    path: str
    caption: str


@dataclass(frozen=True, slots=True)
class CardView:
    """A config that is made of another's rows: conversations (chat) or paths."""

    view: str
    name: str
    """By which `datasets` loads it."""
    folder: str
    """In the repository, with a slash at its end."""


@dataclass(frozen=True, slots=True)
class CardConfig:
    """One config of a card: an artifact and the folder it lies in."""

    manifest: Manifest
    name: str
    prefix: str = ""
    """Folder in the repository with a slash at its end; empty at the root."""
    plots: tuple[Plot, ...] = ()
    tag: str | None = None
    view: CardView | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """All that a card says."""

    configs: list[CardConfig]
    default: str
    """Name of the config that loads without a name."""
    repo: str | None = None
    license: str | None = None
    gated: bool = False
    dataset_info: Any = None
    """`dataset_info` of the YAML head, as `datasets` writes it."""
    changelog: Mapping[str, str] = field(default_factory=dict)
    """Line of each release, by its tag, newest first."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """A user's own text, by section."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Keys of the YAML head that are a user's own, each with its lines as the user wrote them."""


class _VerbatimText:
    """Text that goes into the card as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


class _HeadDumper(yaml.SafeDumper):
    """Writes what a user put into the head so that it is read back as it was."""

    def represent_text(self, text: str) -> yaml.Node:
        # between single quotes YAML takes U+0085 for a line break, which it folds into a space
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_HeadDumper.add_representer(str, _HeadDumper.represent_text)


def render_card(manifest: Manifest) -> str:
    """Render README.md of a local artifact; the YAML at its head makes plain `load_dataset(path)` work."""
    return render(Card([CardConfig(manifest, manifest.kind)], manifest.kind, license=manifest.license))


def render(card: Card) -> str:
    return (
        _environment()
        .get_template("card.md.jinja")
        .render(
            card=card,
            head=_VerbatimText(_head_text(card)),
            kept={name: _VerbatimText(marked(name, card.kept.get(name, ""))) for name in SECTIONS},
            changelog=[_VerbatimText(line) for line in card.changelog.values()],
            title=card.repo or f"{card.configs[0].manifest.kind} {card.configs[0].manifest.version}",
            settings={config.name: list(_figures(config.manifest.configuration)) for config in card.configs},
            details={config.name: list(_figures(_counts(config.manifest.details))) for config in card.configs},
            agreement={config.name: agreement_rows(config.manifest.details) for config in card.configs},
            columns={config.name: _columns(config.manifest.kind) for config in card.configs},
            descriptions=DESCRIPTIONS,
            uses=USES,
            trained_by=TRAINED_BY,
            views=VIEWS,
            single=len(card.configs) == 1 and not card.configs[0].prefix,
        )
    )


def _columns(kind: str) -> list[tuple[str, str, bool, str]]:
    return [
        (name, str(column.dtype).split("(")[0].lower(), column.nullable, column.description or "")
        for name, column in row_schema(kind).columns().items()
    ]


def _counts(details: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in details.items() if name not in {"agreement", "views"}}


def agreement_rows(details: Mapping[str, Any]) -> list[list[str]]:
    """Return the agreement of reviewers as a table: of all, by task, by depth; [] where there is none."""
    figures = details.get("agreement") or {}
    try:
        parts = [("all", figures)] if figures else []
        for name in ("task", "depth"):
            parts += [(f"{name} {key}", part) for key, part in figures.get(f"by_{name}", {}).items()]
        return [row for what, part in parts for row in _agreement_of(what, part)]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return []  # the details of a manifest are as free as whoever wrote it: these are not the figures of ours


def _agreement_of(what: str, part: Mapping[str, Any]) -> Iterator[list[str]]:
    against = part.get("against_value")
    for question in ("verdict", "safe", "helpfulness", "reasoning"):
        if question in part:
            found = part[question]
            values = f"{against['share']:.0%} of {against['of']}" if against and question == "verdict" else ""
            alpha, pairwise = (
                _or_undefined(found[name], form) for name, form in (("alpha", ".2f"), ("pairwise", ".0%"))
            )
            yield [
                what,
                question,
                str(part["items"]),
                str(part["answers"]),
                alpha,
                f"{pairwise} of {found['pairs']}",
                values,
            ]


def _or_undefined(value: float | None, form: str) -> str:
    return "not defined" if value is None else format(value, form)


def _figures(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the numbers, switches and fixed words of a configuration: no text of a user's, no path and no address."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float) or key in _WORDS:
            yield f"{prefix}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def _head_text(card: Card) -> str:
    """Write the YAML head; keys of the user's own come last, as they were written."""
    ours = yaml.dump(_head(card), Dumper=_HeadDumper, sort_keys=False, allow_unicode=True, width=110)
    return ours + "".join(text for key, text in card.extra.items() if key not in _OURS)


def _head(card: Card) -> Json:
    """Return the keys of the YAML head that are ours."""
    return {
        "license": card.license or "unknown",
        "library_name": LIBRARY,
        "task_categories": TASK_CATEGORIES,
        "tags": _tags(card),
        "size_categories": [size_category(sum(config.manifest.rows for config in card.configs))],
        "configs": [entry for config in card.configs for entry in _configs(config, default=card.default)],
        **({"dataset_info": card.dataset_info} if card.dataset_info else {}),
        **(GATE if card.gated else {}),
    }


def _tags(card: Card) -> list[str]:
    kinds = sorted({config.manifest.kind for config in card.configs})
    chats = sorted({config.manifest.kind for config in card.configs if config.view and config.view.view == "chat"})
    return [
        "stairdata",
        "safety",
        "alignment",
        *([] if all(_is_of_people(config.manifest) for config in card.configs) else ["synthetic"]),
        *(kind.replace("_", "-") for kind in kinds),
        *(["trl", *(TRAINED_BY[kind] for kind in chats if kind in TRAINED_BY)] if chats else []),
        "arxiv:2502.02384",
    ]


def _is_of_people(manifest: Manifest) -> bool:
    return manifest.kind in WRITTEN_BY_PEOPLE and "twins" not in manifest.details  # those of prompts are a teacher's


def _configs(config: CardConfig, *, default: str) -> Iterator[Json]:
    """Yield the entry of a config, and that of its view, which is never the default."""
    is_default = {"default": True} if config.name == default else {}
    yield {"config_name": config.name, **is_default, "data_files": _data_files(f"{config.prefix}data/")}
    if config.view is not None:
        yield {"config_name": config.view.name, "data_files": _data_files(config.view.folder)}


def _data_files(folder: str) -> list[Json]:
    return [{"split": "train", "path": f"{folder}*.parquet"}]


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "10M<n<100M")


def yaml_features(kind: str) -> list[Json]:
    """Return the `features` of `dataset_info` as `datasets` writes them, without importing it."""
    return [_feature(name, dtype) for name, dtype in polars_schema(kind).items()]


def _feature(name: str, dtype: Any) -> Json:
    if isinstance(dtype, pl.List):
        return {"name": name, "large_list": _element(dtype.inner)}
    return {"name": name, "dtype": _DTYPES[type(dtype)]}


def _element(dtype: Any) -> Any:
    """Return what `datasets` writes of the elements of a list."""
    if isinstance(dtype, pl.List):
        return {"large_list": _element(dtype.inner)}
    if isinstance(dtype, pl.Struct):
        return [_feature(part.name, part.dtype) for part in dtype.fields]
    return _DTYPES[type(dtype)]


# -- reading a card -------------------------------------------------------------------------------------------


def read_head(card: str) -> Json:
    """Return the YAML head of a card; {} where there is none that can be read."""
    try:
        head = yaml_core.load(_head_of(card))
    except yaml_core.UnreadableYamlError:
        return {}
    return head if isinstance(head, dict) else {}


def check_head(card: str, where: str) -> None:
    """Refuse a card whose YAML head can't be read: generated again, it would lose the user's own keys.

    Raises:
        PublishError: it is no YAML, no mapping, or has a key twice.
    """
    try:
        head = yaml_core.load(_head_of(card))
    except yaml_core.UnreadableYamlError as error:
        raise PublishError(f"the YAML at the head of {where} can't be read: {error}; mend it and push again") from error
    if not isinstance(head, dict | None):
        raise PublishError(f"the YAML at the head of {where} has to be a mapping, found {quote(head)}; mend it")


def _head_of(card: str) -> str:
    """Return the text between the two lines of dashes that a card begins with."""
    match = _HEAD.match(card.replace("\r\n", "\n"))
    return match.group(1) if match else ""


def user_keys(card: str) -> Json:
    """Return the keys of the YAML head that are the user's own."""
    return {key: value for key, value in read_head(card).items() if key not in _OURS}


def user_lines(card: str) -> dict[str, str]:
    """Return the lines of the YAML head that hold the keys of the user's own, by key.

    They are taken as they stand, with comments and quotes: what a value means is for its readers to say. A head in
    another form than a key at the beginning of a line is written anew.
    """
    text = _head_of(card)
    keys = user_keys(card)
    if not keys:
        return {}  # or a head that can't be read
    taken = {key: lines for key, lines in yaml_core.top_level(text).items() if key in keys}
    joined = "".join(taken.values())
    try:
        is_whole = yaml_core.load(joined) == keys
    except yaml_core.UnreadableYamlError:  # an alias of something in a key of ours
        is_whole = False
    if is_whole:
        return taken
    return {key: yaml.dump({key: value}, Dumper=_HeadDumper, allow_unicode=True) for key, value in keys.items()}


def user_text(card: str) -> dict[str, str]:
    """Return what a person wrote between the marked lines, by section."""
    text = card.replace("\r\n", "\n")
    found = {}
    for name in SECTIONS:
        begin, end = map(re.escape, _marks(name))
        # one after the other: as one pattern, thousands of beginnings would each look for an end through the whole card
        opening = re.compile(rf"^{begin}\n", re.MULTILINE).search(text)
        closing = opening and re.compile(rf"^{end}$", re.MULTILINE).search(text, opening.end())
        if opening and closing and (written := text[opening.end() : closing.start()]).strip():
            found[name] = written.strip("\n")
    return found


def foreign_text(card: str) -> str:
    """Return the text of a card that is not one of ours: somebody wrote it, and it must not be lost."""
    if not card.strip() or any(mark in card for name in SECTIONS for mark in _marks(name)):
        return ""
    return _HEAD.sub("", card.replace("\r\n", "\n")).removeprefix("\ufeff").strip("\n")


def read_changelog(card: str) -> dict[str, str]:
    """Return the lines of a card's changelog by their tag."""
    section = card.rpartition("\n## Changelog\n")[2].partition("\n## ")[0] if "\n## Changelog\n" in card else ""
    return {match.group(1): match.group(0) for match in re.finditer(r"^- \*\*(\S+)\*\* .*$", section, re.MULTILINE)}


def default_config(card: str) -> str | None:
    """Return the config that loads without a name."""
    configs = read_head(card).get("configs")
    entries = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    name = next((entry.get("config_name") for entry in entries if entry.get("default")), None)
    return name if isinstance(name, str) else None


def with_user_text(card: str, kept: Mapping[str, str]) -> str:
    """Put what a person wrote between the marked lines of a card, by section."""
    for name, text in kept.items():
        begin, end = _marks(name)
        before, _, rest = card.partition(f"{begin}\n")
        if rest and f"\n{end}" in f"\n{rest}":
            after = f"\n{rest}".split(f"\n{end}", 1)[1]
            card = f"{before}{marked(name, text)}{after}"
    return card


def marked(name: str, text: str = "") -> str:
    """Return the two lines of a section of a user's own, with its text between them."""
    begin, end = _marks(name)
    return f"{begin}\n{text}\n{end}" if text else f"{begin}\n{end}"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- your {name}: begin (kept when this card is generated again) -->", f"<!-- your {name}: end -->"


def inline(text: str) -> str:
    """Keep a name or a note on its line, and its angle brackets as text."""
    return html.escape(re.sub(r"\s+", " ", text), quote=False)


def _finalize(value: Any) -> Any:
    return inline(value) if isinstance(value, str) else value


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata_schemas.cards"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # markdown, and no text of prompts or models is in it
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
