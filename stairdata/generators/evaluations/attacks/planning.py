"""From the recipe to attacks: by name, with whose wording each has, and on which prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from stairdata.generators.evaluations.attacks import wording
from stairdata.generators.evaluations.attacks.attack import Attack, AttackedPrompt, AttackOutcome, AttackRun
from stairdata.generators.evaluations.attacks.pair import pair_attack
from stairdata.generators.evaluations.attacks.pap import pap_attack
from stairdata.generators.evaluations.attacks.templates import fill, read_templates
from stairdata.recipe import AttacksSection
from stairdata.runs.row_sampling import BottomSample
from stairdata_schemas.errors import RecipeError, quote, suggest
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import sha256_of_file

if TYPE_CHECKING:
    from stairdata.generators.evaluations.benchmarks.benchmark import BenchmarkPrompt

REWRITES: dict[str, Callable[[str], AttackedPrompt]] = {
    "none": wording.no_attack,
    "role_play": wording.role_play,
    "prefix_injection": wording.prefix_injection,
    "refusal_suppression": wording.refusal_suppression,
    "base64": wording.in_base64,
    "rot13": wording.in_rot13,
    "prefill": wording.prefill,
    "tags": wording.forged_turn,
}
"""Attacks that only rewrite the prompt."""
KNOWN_ATTACKS = (*REWRITES, "pap", "pair")


def plan_attacks(section: AttacksSection) -> list[Attack]:
    """Return the attacks of a recipe, in its order; `pap` is one for each technique.

    Raises:
        RecipeError: a name that is neither one of ours nor a template, or pap or pair without an attacker.
        InputError: the file of templates can't be used.
    """
    templates = read_templates(section.templates) if section.templates else {}
    if shadowed := sorted(set(KNOWN_ATTACKS) & templates.keys()):
        raise RecipeError(
            f"{section.templates}: the template {quote(shadowed[0])} has the name of an attack; rename it"
        )
    return [attack for name in section.names for attack in _attacks(name, section, templates)]


def _attacks(name: str, section: AttacksSection, templates: dict[str, str]) -> Iterator[Attack]:
    if name in templates:
        assert section.templates is not None
        details = {"template": section.templates.name, "sha256": sha256_of_file(section.templates)}
        yield _rewriting(name, partial(_filled, templates[name]), details)
    elif name == "tags":
        rewrite = partial(wording.forged_turn, markers=section.markers)
        yield _rewriting(name, rewrite, {"wording": wording.WORDING, "markers": section.markers})
    elif name in REWRITES:
        yield _rewriting(name, REWRITES[name], {} if name == "none" else {"wording": wording.WORDING})
    elif name in {"pap", "pair"}:
        yield from _written(name, section)
    else:
        raise RecipeError(f"attacks: {quote(name)} is no attack; {suggest(name, [*KNOWN_ATTACKS, *templates], 0.5)}")


def _rewriting(name: str, rewrite: Callable[[str], AttackedPrompt], details: dict[str, str]) -> Attack:
    return Attack(name, partial(_at_once, rewrite, details), needs_completions=name == "prefill", details=details)


def _at_once(rewrite: Callable[[str], AttackedPrompt], details: dict[str, str], prompt: str) -> AttackRun:
    """Attack without a request."""
    yield from ()
    return AttackOutcome(rewrite(prompt), dict(details))


def _filled(template: str, prompt: str) -> AttackedPrompt:
    return AttackedPrompt(fill(template, prompt))


def _written(name: str, section: AttacksSection) -> Iterator[Attack]:
    """Yield the attacks that an attacker writes."""
    if section.attacker is None:
        raise RecipeError(f"the attack {name} is written by a model: give `attacker: {{base_url: URL, model: NAME}}`")
    reasks, details = section.attacker.reasks, {"wording": wording.WORDING}
    if name == "pair":
        settings = details | counted_settings(section.pair)
        start = partial(pair_attack, section=section.pair, reasks=reasks)
        yield Attack(name, start, asks_attacker=True, asks_target=True, details=settings)
        return
    for technique in section.pap.techniques:
        start = partial(pap_attack, technique=technique, reasks=reasks)
        yield Attack(f"pap_{technique}", start, asks_attacker=True, details=details | {"technique": technique})


def attacked_prompts(prompts: Iterable[BenchmarkPrompt], section: AttacksSection, seed: int) -> set[tuple[str, str]]:
    """Return which prompts are attacked, as (benchmark, prompt_id): harmful ones, a sample where there is a `count`.

    Raises:
        RecipeError: `benchmarks` names one that has no prompts here.
    """
    prompts = list(prompts)
    names = dict.fromkeys(prompt.benchmark for prompt in prompts)
    if unknown := [name for name in section.benchmarks if name not in names]:
        raise RecipeError(
            f"attacks.benchmarks: {quote(unknown[0])} is no benchmark of this evaluation; {suggest(unknown[0], names)}"
        )
    harmful = [
        each for each in prompts if each.is_harmful and (not section.benchmarks or each.benchmark in section.benchmarks)
    ]
    sample: BottomSample[tuple[str, str]] = BottomSample(section.count or len(harmful) or 1, seed)
    for each in harmful:
        sample.add(f"{each.benchmark}/{each.prompt_id}", (each.benchmark, each.prompt_id))
    return set(sample)
