"""The recipe: every key is described and has a default, and each mistake is told by its key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from stairdata.recipe import EvaluatedModel, Recipe, load_recipe
from stairdata.recipe.loading import PACKAGED, packaged_recipe
from stairdata.stages import FullRecipe
from stairdata_schemas.errors import RecipeError, UsageError

# design section 9, which scripts outside the project rely on
CONTRACT = """
seed: 42
prompts:
  sources:
    - {path: prompts.jsonl, columns: {prompt: question, task: type}, count: 1000}
    - {hub: PKU-Alignment/PKU-SafeRLHF, revision: abc, split: train, task: safety, count: 22000}
actor:
  base_url: http://127.0.0.1:8000/v1
  model: actor
  tokenizer: runs/sft
  api_key_env: OPENAI_API_KEY
trees: {iterations: 200, samples: 4, max_depth: 7, c: 1.5, score: ucb, temperature: 1.2, top_p: 0.9, top_k: 50,
        max_tokens: 2048, visit_all_leaves: true, judge: {kind: self, cache: true}, concurrency: 64}
preference_pairs: {granularity: step, min_margin: 0.5, min_chosen_value: 0.8, min_visits: 4, max_tokens: 2048}
prm_pairs: {}
structured_cot: {teacher: {base_url: "http://127.0.0.1:8000/v1", model: teacher}}
sft: {}
dpo: {}
prm: {}
"""


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> FullRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_recipe(FullRecipe, path, list(overrides))


def sections(model: type[BaseModel], name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section reachable from a model, with its place."""
    yield name, model
    for key, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from sections(inner, f"{name}.{key}".strip("."))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


SECTIONS = dict(sections(FullRecipe))


@pytest.mark.parametrize("place", SECTIONS)
def test_every_key_is_described_and_has_a_default(place: str) -> None:
    model = SECTIONS[place]
    assert model.__doc__, "a section says what it is for"
    for key, field in model.model_fields.items():
        assert not field.is_required(), key
        is_section = any(models_in(field.annotation))
        assert is_section or (field.description or "").strip(), f"{place}.{key} has no description"


def test_every_section_is_found() -> None:
    assert {"prompts.sources", "actor", "trees.judge.endpoint", "structured_cot.teacher", "sft.lora"} <= set(SECTIONS)


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_is_read(path: Path) -> None:
    assert packaged_recipe(Path(path.stem)) == path  # a bare name finds it, from the package
    recipe = load_recipe(FullRecipe, path, [])
    assert recipe != FullRecipe()


def test_the_contract(tmp_path: Path) -> None:
    recipe = load(tmp_path, CONTRACT)
    assert recipe.trees.model_dump(exclude={"concurrency"}) == Recipe().trees.model_dump(exclude={"concurrency"})
    assert recipe.preference_pairs == Recipe().preference_pairs
    assert recipe.prm_pairs == Recipe().prm_pairs
    assert recipe.prompts.sources[1].hub == "PKU-Alignment/PKU-SafeRLHF"


def test_concurrency_can_be_auto(tmp_path: Path) -> None:
    assert load(tmp_path, CONTRACT, "trees.concurrency=auto")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_an_empty_recipe_is_the_default(text: str, tmp_path: Path) -> None:
    assert load(tmp_path, text) == FullRecipe() == load_recipe(FullRecipe, None, [])


def test_the_resolved_recipe_is_a_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, CONTRACT)
    assert load(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json"))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tres: {}", "unknown key 'tres'; did you mean 'trees'?"),
        ("trees: {iteration: 5}", "unknown key 'trees.iteration'; did you mean 'iterations'?"),
        ("trees: {judge: {knd: self}}", "unknown key 'trees.judge.knd'; did you mean 'kind'?"),
        ("trees: {judge: {endpoint: {url: x}}}", "unknown key 'trees.judge.endpoint.url'; known keys: path, base_url"),
        ("prompts: {sources: [{path: a}, {pth: b}]}", "unknown key 'prompts.sources.1.pth'; did you mean 'path'?"),
        ("sft: {learning_rat: 1}", "unknown key 'sft.learning_rat'; did you mean 'learning_rate'?"),
        ("sft: {lora: {rnk: 1}}", "unknown key 'sft.lora.rnk'; did you mean 'rank'?"),
        ("zzzzzz: 1", "unknown key 'zzzzzz'; known keys: seed, prompts"),
        ("1: 2", "1"),
        ("trees: 5", "trees: Input should be .*, found '5'"),
        ("trees: {iterations: 0}", "trees.iterations: .*greater than or equal to 1, found '0'"),
        ("trees: {iterations: many}", "trees.iterations: .*integer.*, found 'many'"),
        (
            "trees: {judge: {kind: me}}",
            "trees.judge.kind: Input should be 'self', 'rule', 'reference', 'endpoint' or 'guard'",
        ),
        (
            "trees: {judge: {kind: rule, penalise_over_refusal: true}}",
            "trees.judge: .*penalise_over_refusal is for kind reference",
        ),
        ("trees: {judge: {kind: endpoint}}", "trees.judge: .*judge.endpoint is needed with kinds endpoint and guard"),
        ("trees: {judge: {kind: guard, endpoint: {path: g}}}", "trees.judge: .*judge.guard is needed with kind guard"),
        ("trees: {judge: {labels: {unsave: -1}}}", "unknown key 'trees.judge.labels.unsave'; did you mean 'unsafe'"),
        ("trees: {judge: {labels: {safe: -1}}}", "trees.judge.labels: .*safe has to be above"),
        ("trees: {judge: {labels: {unsafe: -0.5}}}", "trees.judge: .*labels and judge.helpfulness are for kind guard"),
        ("trees: {judge: {policy: p.txt}}", "trees.judge: .*policy is for guard policy or shieldgemma"),
        ("evaluations: {benchmarks: [{}]}", "evaluations.benchmarks.0: .*a benchmark needs a name"),
        ("evaluations: {judge: {kind: rubric}}", "evaluations.judge: .*kind rubric needs a model"),
        ("evaluations: {judge: {kind: rule, path: j}}", "evaluations.judge: .*kind rule asks no model"),
        ("evaluations: {judge: {kind: guard, path: j}}", "evaluations.judge: .*guard is needed with kind guard"),
        ("evaluations: {judge: {reads: steps}}", "evaluations.judge.reads: Input should be 'answer' or 'whole'"),
        ("evaluations: {models: [{model: m}]}", r"evaluations.models.0: .*give path \(a model\) or base_url"),
        (
            "evaluations: {models: [{base_url: 'http://h/v1', model: m, api: completions}]}",
            "api completions needs tokenizer",
        ),
        ("trees: {c: .nan}", "trees.c"),
        ("actor: {path: a, base_url: b}", "actor: .*not both"),
        ("prompts: {sources: [{}]}", "prompts.sources.0: .*give either path or hub"),
        ("prompts: {sources: [{path: a, hub: b}]}", "give either path or hub"),
        ("prompts: {decontaminate: [{path: a, count: 5, where: {x: y}}]}", "all rows .* so count can't choose"),
        ("prompts: {decontaminate: [a, {hub: b, skip: 1}]}", "prompts: .*so skip can't choose among them"),
        ("responses: {method: best_of_n}", "best_of_n needs a prm"),
        ("seed: -1", "seed: .*found '-1'"),
        ("- 1\n- 2", "has to be a mapping of sections, found"),
        ("just text", "has to be a mapping of sections, found 'just text'"),
        ("trees: {iterations: 5", "is not YAML: .*line 1"),
        ("a: b: c", "is not YAML"),
        ("\tseed: 1", "is not YAML"),
        ("seed: &a [*a]", "recipe"),
        ("seed: 2001-99-99", "seed: .*integer.*, found '2001-99-99'"),
        ("seed: !!timestamp 2001-99-99", "is not YAML"),
        ("{seed: " + "[" * 2000, "is not YAML"),
        ("trees: {iterations: 0x10}", "trees.iterations: .*integer.*, found '0x10'"),
        ("actor: {model: true}", "actor.model: .*string.*, found 'True'"),
        ("seed: !!python/object:os.system {}", "is not YAML"),
        (b"seed: \xff", "can't be read: .*utf-8"),
        (b"seed: \x00", "is not YAML"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_in_a_recipe(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "recipe.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["trees.c=.inf", "preference_pairs.min_chosen_value=.nan", f"seed={2**63}"])
def test_a_number_that_no_column_and_no_request_holds(override: str) -> None:
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        load_recipe(Recipe, None, [override])


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(FullRecipe, tmp_path / "no.yaml", [])
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(FullRecipe, tmp_path, [])


def test_a_key_in_a_recipe_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'actor\.api_key'; did you mean 'api_key_env'") as caught:
        load(tmp_path, "actor: {api_key: sk-very-secret}")
    assert "sk-very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("{seed: 1, model: m}", "model, seed can't be set here"),
        ("{reasoning_effort: low}", "reasoning_effort can't be set here"),
        ("{stream: true}", "stream can't be set here"),
        ("{a: [{b: sk-0123456789abcdefghijkl}]}", "looks like a key"),
        ("{user: 4f9a1c7b2e8d0a6c}", "looks like a key"),
        ("{route: me:word@host/v1}", "looks like a key"),
        ("[1]", "valid dictionary"),
    ],
)
def test_an_extra_body_holds_neither_what_is_ours_nor_a_secret(extra: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"structured_cot\.teacher\.extra_body.*" + said) as caught:
        load(tmp_path, f"structured_cot: {{teacher: {{extra_body: {extra}}}}}")
    assert "0123456789abcdefghijkl" not in str(caught.value)
    assert "4f9a1c7b2e8d0a6c" not in str(caught.value)


def test_an_extra_body_may_hold_all_else(tmp_path: Path) -> None:
    extra = "{models: [openai/gpt-5.1-mini-2025-08-07], reasoning: {max_tokens: 99}, min_p: 0.1, a: null}"
    teacher = load(tmp_path, f"structured_cot: {{teacher: {{extra_body: {extra}}}}}").structured_cot.teacher
    assert teacher.extra_body == yaml.safe_load(extra)
    with pytest.raises(ValidationError, match="finite number"):
        EvaluatedModel(path="m", extra_body={"a": float("nan")})


def test_effort_goes_with_chats(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"actor\.reasoning_effort goes with chats"):
        load(tmp_path, "actor: {reasoning_effort: low}")
    with pytest.raises(RecipeError, match="reasoning_effort goes with api chat"):
        load(tmp_path, "evaluations: {models: [{path: m, reasoning_effort: low}]}")
    with pytest.raises(RecipeError, match=r"reasoning_effort.*'none'"):
        load(tmp_path, "structured_cot: {teacher: {reasoning_effort: huge}}")


@pytest.mark.parametrize(
    ("actor", "prm", "shares"),
    [
        ("path: a", "{path: b, serve: true}", (0.55, 0.35)),
        ("path: a, gpu_memory: 0.5", "{path: b, serve: true}", (0.5, 0.4)),
        ("path: a", "{path: b, serve: true, gpu_memory: 0.6}", (0.3, 0.6)),
        ("path: a, gpu_memory: 0.6", "{path: b, serve: true, gpu_memory: 0.35}", (0.6, 0.35)),
        ("path: a", "folder", (0.55, None)),
        ("path: a", "null", (None, None)),
        ("path: a, gpu_memory: 0.9", "null", (0.9, None)),
        ("path: a", "{base_url: 'http://b/v1', model: b, tokenizer: b}", (None, None)),
        ("base_url: 'http://a/v1'", "{path: b, serve: true}", (None, None)),
    ],
)
def test_two_models_share_a_gpu(actor: str, prm: str, shares: tuple[Any, Any], tmp_path: Path) -> None:
    recipe = load(tmp_path, f"{{actor: {{{actor}}}, responses: {{prm: {prm}}}}}")
    assert recipe.gpu_shares() == shares
    assert recipe.beside_prm(recipe.actor).gpu_memory == shares[0]


def test_a_tested_model_leaves_the_reward_model_its_share(tmp_path: Path) -> None:
    recipe = load(tmp_path, "{actor: {path: a}, responses: {prm: {path: b, serve: true, gpu_memory: 0.6}}}")
    other = EvaluatedModel(path="c")
    assert recipe.beside_prm(other) == EvaluatedModel(path="c", gpu_memory=0.3)
    assert recipe.beside_prm(EvaluatedModel(path="c", gpu_memory=0.2)).gpu_memory == 0.2


@pytest.mark.parametrize(
    ("actor", "prm", "shown"), [(0.6, 0.36, "0.6 and 0.36"), (0.95, None, "0.95 and nothing"), (None, 0.91, "nothing")]
)
def test_shares_of_a_gpu_that_are_too_much_together(
    actor: float | None, prm: float | None, shown: str, tmp_path: Path
) -> None:
    words = [f", gpu_memory: {share}" if share else "" for share in (actor, prm)]
    text = f"{{actor: {{path: a{words[0]}}}, responses: {{prm: {{path: b, serve: true{words[1]}}}}}}}"
    with pytest.raises(RecipeError, match=rf"gpu_memory are {shown}.*0\.95 of its memory together"):
        load(tmp_path, text)


def test_set_changes_keys_and_values_are_yaml(tmp_path: Path) -> None:
    recipe = load(tmp_path, "trees: {c: 3, samples: 2}", "trees.c=2.5", "trees.judge.kind=rule", "seed=7",
                  "prompts.sources=[{path: a.csv}]", "actor.tokenizer=a=b", "actor.model=")  # fmt: skip
    assert (recipe.trees.c, recipe.trees.samples, recipe.trees.judge.kind, recipe.seed) == (2.5, 2, "rule", 7)
    assert recipe.prompts.sources[0].path == Path("a.csv")
    assert (recipe.actor.tokenizer, recipe.actor.model) == ("a=b", None)


def test_the_last_set_wins() -> None:
    assert load_recipe(Recipe, None, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write key.key=value"),
        ("=5", "write key.key=value"),
        ("seed=[1", "the value is not YAML; quote it"),
        ("seed=!!timestamp 2001-99-99", "the value is not YAML; quote it"),
        ("seed.x=1", "'seed' is not a section"),
        ("trees.judge.kind.x=1", "'kind' is not a section"),
    ],
)
def test_a_set_that_can_not_be_used(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load(tmp_path, "{seed: 1, trees: {judge: {kind: self}}}", override)


@pytest.mark.parametrize("override", ["trees=5", "trees.nodes=5", ".=1", "trees.=1", "trees..c=1"])
def test_a_set_that_names_no_key(override: str) -> None:
    with pytest.raises(RecipeError, match="recipe: "):
        load_recipe(FullRecipe, None, [override])


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("seed: 1\ntrees: {}\nseed: 2", "'seed' stands twice, at line 1, column 1 and at line 3, column 1"),
        ("trees: {c: 1, judge: {}, 'c': 2}", "'c' stands twice, at line 1, column 9 and at line 1, column 26"),
        ("prompts:\n  sources:\n    - path: a\n      path: b", "'path' stands twice, at line 3, .* and at line 4"),
        ("prices: {1: {input: 1}, '1': {input: 2}}", "'1' stands twice"),
    ],
)
def test_a_key_twice_in_a_recipe(text: str, places: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=places):
        load(tmp_path, text)
    with pytest.raises(UsageError, match=places.partition(",")[0]):
        load_recipe(FullRecipe, None, [f"x={text}"])


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    text = "structured_cot: {teacher: &a {model: a, retries: 1}}\nactor: {<<: *a, model: b}"
    actor = load(tmp_path, text).actor
    assert (actor.model, actor.retries) == ("b", 1)


@pytest.mark.parametrize(
    "word", ["no", "on", "yes", "off", "y", "1.10", "007", "12:30", "2024-08-06", "1_000", "5", "1.5"]
)
def test_a_word_stays_a_word_where_text_is_expected(word: str, tmp_path: Path) -> None:
    recipe = load(tmp_path, f"prompts: {{sources: [{{hub: a, revision: {word}}}]}}", f"actor.model={word}",
                  f"prompts.languages=[{word}]", f"sft.lora.target_modules=[{word}]", f"sft.model={word}")  # fmt: skip
    source = recipe.prompts.sources[0]
    assert [source.revision, recipe.actor.model, *recipe.prompts.languages] == [word] * 3
    assert recipe.sft.lora is not None
    assert [recipe.sft.model, *recipe.sft.lora.target_modules] == [word] * 2


@pytest.mark.parametrize("word", ["no", "on", "1.10", "007", "2024-08-06", "12:30"])
def test_a_word_stays_a_word_in_where(word: str, tmp_path: Path) -> None:
    recipe = load(tmp_path, f"prompts: {{sources: [{{path: a, where: {{x: [en, {word}], {word}: {word}}}}}]}}")
    assert recipe.prompts.sources[0].where == {"x": ["en", word], word: word}


@pytest.mark.parametrize(
    ("override", "value"),
    [("yes", True), ("off", False), ("true", True), ("False", False), ("on", True)],
)
def test_a_switch_takes_its_words(override: str, value: bool) -> None:
    assert load_recipe(Recipe, None, [f"trees.visit_all_leaves={override}"]).trees.visit_all_leaves is value


@pytest.mark.parametrize(("text", "value"), [("1.50", 1.5), ("2", 2.0), ("1e-1", 0.1), ("+3", 3.0), (".5", 0.5)])
def test_a_number_in_any_form_where_a_number_is_expected(text: str, value: float) -> None:
    recipe = load_recipe(Recipe, None, [f"trees.c={text}"])
    assert recipe.trees.c == value
    assert isinstance(recipe.trees.c, float)
    assert load_recipe(Recipe, None, ["trees.iterations=1_000"]).trees.iterations == 1000


def test_a_recipe_behind_a_byte_order_mark(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbfseed: 7").seed == 7
