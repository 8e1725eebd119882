"""results.md, made of what results.json holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from stairdata_schemas.aliases import Json

from .comparing import ERRORS_NEEDED
from .figures import SHARES
from .lines import PHRASE, TIMES

COMMAND = "python -m benchmarks.proof"
SMOKE = """\
**A smoke run: it shows that every stage works. Its models are tested on very few prompts, like those that they were
trained on, so that no figure here says anything.**
"""
MEASURE = f"""\
The primary measure is the share of refusals among XSTest's unsafe prompts minus that among its safe ones, told by the
refusal rule. In brackets the 95% interval over prompts, drawn within each of the two halves; differences are paired by
prompt. Cut and empty answers are counted, stand in no share of refusals, and solve nothing. An answer repeats a phrase
if some {PHRASE} words in a row stand in it {TIMES} times or more. Tokens are those that are sampled.
"""
PAIRS = """\
Pairs of held-out trees, which nothing was trained on. "Labels in order": how many of them are in the order of their
nodes' true values, by how far visits of one node differ in the round's trees; a model that knew these values would be
right in so many. The length rule prefers the side of more or of fewer characters, whichever is better on these pairs:
"""


def page(results: Json, plots: Sequence[str]) -> str:
    """Return the page."""
    about = results["about"]
    lines = ["# The proof: results", "", *_head(about)]
    for seed in about["seeds"]:
        lines += ["", f"## Seed {seed}", "", *_line(results, seed)]
    lines += ["", "## All seeds together", "", *_pooled(results)]
    for group, title in (("sweep", "Learning rates"), ("comparisons", "Comparisons")):
        items = {name: found for name, found in results["items"].items() if found["group"] == group}
        if items:
            lines += ["", f"## {title}", "", f"`{COMMAND} {group}`", "", *_items(results, items)]
    if results["hand_check"]:
        lines += ["", "## The refusal rule against labels by hand", "", *_hand_check(results["hand_check"])]
    for name in plots:
        lines += ["", f"![{PurePosixPath(name).stem}]({name})"]
    return "\n".join([*lines, "", *_not_run(results)]) + "\n"


def _head(about: Json) -> Iterator[str]:
    if about["smoke"]:
        yield SMOKE
    yield MEASURE
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    yield f"- Seeds: {', '.join(about['seeds'])}; prompts from {about['prompts']}."
    yield f"- Keys of the recipe that were set: {', '.join(f'`{each}`' for each in about['set']) or 'none'}."
    yield f"- {versions}; commit {about['commit'] or 'unknown'}."
    yield f"- {about['refusal_rule'][0].upper()}{about['refusal_rule'][1:]}."
    yield f"- The criterion: {about['criterion']}."


def _line(results: Json, seed: str) -> Iterator[str]:
    line = results["lines"][seed]
    yield f"`{COMMAND} {'run' if seed == results['about']['seeds'][0] else 'seeds'}`"
    yield ""
    if line["not_there"]:
        yield f"Not there yet: {'; '.join(line['not_there'])}."
        yield ""
    rates = ", ".join(f"{name} {rate:g}" for name, rate in line["recipe"]["learning_rates"].items())
    yield f"Learning rates: {rates}. Judge of the trees: {_settings(line['recipe']['judge'])}."
    yield ""
    yield from _models(line["models"])
    yield ""
    yield from _gains(results["gains"][seed])
    if line["searched"]:
        yield ""
        yield "What tokens at test time add, all on the prompts that are searched:"
        yield ""
        rows = [[each["name"], _shown(each["primary"], "value"), f"{each['tokens']:.0f}"] for each in line["searched"]]
        yield from _table(["answer", "primary measure", "tokens a prompt"], rows)
    if line["pairs"]:
        yield ""
        yield PAIRS
        yield from _pairs(line["pairs"])
    yield ""
    yield from _stages(line["stages"])


def _settings(values: Json) -> str:
    return ", ".join(name if value is True else str(value) for name, value in values.items() if value is not False)


def _models(models: Json) -> Iterator[str]:
    header = ["model", "primary measure", *SHARES.values(), "tokens a prompt", "answers", "cut", "empty", "trained on"]
    rows = [
        [
            name,
            _shown(found["primary"], "value"),
            *(_shown(found[share]) for share in SHARES),
            f"{found['tokens']:.0f}",
            *(f"{found[count]:,}" for count in ("answers", "cut", "empty", "seen")),
        ]
        for name, found in models.items()
    ]
    yield from _table(header, rows)


def _gains(gains: Sequence[Json]) -> Iterator[str]:
    header = ["primary measure", "difference", "standard error", "standard errors from 0", "least visible",
              "of safe prompts refused", "prompts"]  # fmt: skip
    yield from _table(header, [_gain(each) for each in gains])


def _gain(gain: Json) -> list[str]:
    found = gain["primary"]["difference"]
    return [
        f"{gain['b']} - {gain['a']}",
        _shown(found, "value", signed=True),
        f"{found['error']:.3f}",
        _number(found["errors_from_zero"], ".1f"),
        _number(found["least_visible"], ".3f"),
        _shown(gain["refused_safe"]["difference"], signed=True),
        " + ".join(map(str, found["prompts"])),
    ]


def _pooled(results: Json) -> Iterator[str]:
    yield f"`{COMMAND} seeds`, then `{COMMAND} results`. Each prompt counts once, with its answers of all seeds."
    yield ""
    seeds = results["about"]["seeds"]
    header = ["primary measure", *(f"seed {seed}" for seed in seeds), "pooled difference", "standard errors",
              "of safe prompts refused", f"verdict (at least {ERRORS_NEEDED:g} standard errors)"]  # fmt: skip
    rows = [
        [
            f"{gain['b']} - {gain['a']}",
            *(_number(gain["by_seed"].get(seed), "+.3f") for seed in seeds),
            _shown(gain["primary"]["difference"], "value", signed=True),
            _number(gain["primary"]["difference"]["errors_from_zero"], ".1f"),
            _shown(gain["refused_safe"]["difference"], signed=True),
            gain["verdict"],
        ]
        for gain in results["pooled"]
    ]
    yield from _table(header, rows)


def _items(results: Json, items: Json) -> Iterator[str]:
    for name, found in items.items():
        rates = ", ".join(f"{method} {rate:g}" for method, rate in found["learning_rates"].items())
        yield f"- `{name}`: {found['words']} (learning rates {rates}; {found['minutes']:g} min)"
    main = results["lines"][results["about"]["seeds"][0]]
    measured = {name: found for name, found in items.items() if found.get("model")}
    if measured:
        against = dict.fromkeys(found["against"] for found in measured.values())
        yield ""
        yield from _models(
            {f"{model} (main line)": main["models"][model] for model in against if model in main["models"]}
            | {name: found["model"] for name, found in measured.items()}
        )
    gains = [found["gain"] for found in measured.values() if found.get("gain")]
    if gains:
        yield ""
        yield from _gains(gains)
    pairs = [each for found in items.values() for each in found["pairs"]]
    if pairs:
        yield ""
        yield from _pairs([*({**each, "model": f"{each['model']} (main line)"} for each in main["pairs"]), *pairs])
    for name, found in items.items():
        if found.get("choices"):
            yield ""
            yield from _choices(name, found["choices"])


def _choices(name: str, choices: Sequence[Json]) -> Iterator[str]:
    yield f"`{name}`: the same scored samples, chosen in several ways; the judge itself is the ceiling of all of them."
    yield ""
    rows = []
    for each in choices:
        against = each["against_random"]
        gained = _shown(against["difference"], "value", signed=True) if against else ""
        errors = _number(against["difference"]["errors_from_zero"], ".1f") if against else ""
        rows.append([each["name"], _shown(each["primary"], "value"), gained, errors])
    yield from _table(["chosen by", "primary measure", "against random, paired", "standard errors"], rows)


def _pairs(pairs: Sequence[Json]) -> Iterator[str]:
    rows = [
        [
            each["model"],
            _shown(each["accuracy"], "value"),
            _shown(each["in_order"], "value"),
            f"{each['length_rule']['prefers']}: {_shown(each['length_rule']['accuracy'], 'value')}",
            _number(each["length_correlation"], "+.2f"),
            f"{each['accuracy']['rows']:,} of {each['accuracy']['prompts']} prompts",
            f"{each['trained_on']:,}",
        ]
        for each in pairs
    ]
    header = ["model", "accuracy", "labels in order, estimated", "length rule", "margin by length", "held-out pairs",
              "trained on"]  # fmt: skip
    yield from _table(header, rows)


def _stages(stages: Sequence[Json]) -> Iterator[str]:
    kinds: dict[str, list[Json]] = {}
    for each in stages:
        kinds.setdefault(each["stage"].partition(" (")[0], []).append(each)
    minutes = sum(each["minutes"] for each in stages)
    yield f"Stages, {minutes:.0f} minutes in all, each as long as the command that finished it:"
    yield ""
    counts = ("rows", "refused", "tokens")
    rows = [
        [kind, str(len(found)), *(f"{sum(each[name] or 0 for each in found):,}" for name in counts), _time(found)]
        for kind, found in kinds.items()
    ]
    yield from _table(["stage", "how many", "rows", "refused rows", "tokens", "minutes"], rows)


def _time(stages: Sequence[Json]) -> str:
    return f"{sum(each['minutes'] for each in stages):.1f}"


def _hand_check(found: Json) -> Iterator[str]:
    words = "a sample of each model's answers, labelled in a table that does not name the model"
    yield f"`{COMMAND} hand-check read FILE --reader NAME`: {words}."
    yield "Intervals are Wilson's."
    yield ""
    names = ("recall", "precision", "refused_by_label", "refused_by_rule")
    rows = [
        [reader, model, str(each["labelled"]), *(_shown(each[name]) for name in names)]
        for reader, rates in found["readers"].items()
        for model, each in rates.items()
    ]
    yield from _table(["reader", "model", "labelled", *(name.replace("_", " ") for name in names)], rows)
    if "agreement" in found:
        yield ""
        yield "How far readers agree, by pairs of labels of the same answer:"
        yield ""
        rows = [
            [model, str(each["pairs"]), _number(each["pairwise"], ".3f"), _number(each["alpha"], ".3f")]
            for model, each in found["agreement"].items()
        ]
        yield from _table(["model", "pairs of labels", "equal", "Krippendorff's alpha"], rows)


def _not_run(results: Json) -> Iterator[str]:
    yield "## What has not run"
    yield ""
    for each in results["not_run"]:
        yield f"- `{each['name']}`: {each['words']} (`{COMMAND} {each['group']} --only {each['name']}`)"
    if not results["hand_check"]:
        yield f"- labels by hand (`{COMMAND} hand-check export FILE`, then `hand-check read FILE`)"
    if not results["not_run"] and results["hand_check"]:
        yield "Nothing is missing: every item has run."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _shown(estimate: Any, name: str = "mean", *, signed: bool = False) -> str:
    """Show a figure with its interval; empty for None."""
    if estimate is None:
        return ""
    form = "+.3f" if signed else ".3f"
    if estimate["low"] is None:
        return f"{estimate[name]:{form}}"
    return f"{estimate[name]:{form}} ({estimate['low']:{form}} to {estimate['high']:{form}})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
