"""Changing a key of a recipe changes the fingerprint of a build exactly where the key decides its rows.

Every field of every section is changed in builds of every kind from every source. What is expected follows from the
marks at the fields, and from what a case says it uses: a new key needs no line here, unless it is marked.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import polars as pl
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.generators.prompts import mapping
from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.structured_cot.plan import TeacherOptions
from stairdata.recipe import (
    BEAM_KEYS,
    Attacker,
    AttacksSection,
    BenchmarkSection,
    Endpoint,
    EvaluatedModel,
    EvaluationJudge,
    EvaluationsSection,
    JudgeSection,
    ModelServer,
    PapSection,
    PrmEndpoint,
    PromptSource,
    PromptsSection,
    Recipe,
    RoundsSection,
    RubricFiles,
    SearchSettings,
    StructuredCotSection,
    TemplatesSection,
    TwinsSection,
)
from stairdata.runs.options import BuildOptions
from stairdata.stages import FullRecipe, build_kind
from stairdata_review.reviews import Source, build_reviews
from stairdata_schemas import building, identity, rendering
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan
from stairdata_schemas.fingerprints import Mark, counted_settings, mark_of
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import Parent
from tests.review.samples import answer, block, review
from tests.stairdata.forests import artifact_of, tree_of

Place = tuple[str | int, ...]

MARKED = {
    Mark.CANNOT_CHANGE_RESULT: {
        "Endpoint.enforce_eager",
        "ModelServer.api_key_env", "ModelServer.base_url", "ModelServer.concurrency", "ModelServer.gpu_memory",
        "ModelServer.port", "ModelServer.retries", "ModelServer.retry_seconds", "ModelServer.timeout",
        "BenchmarkSection.license", "EvaluationsSection.batch", "EvaluationsSection.concurrency",
        "PrmEndpoint.serve", "PromptSource.license", "PromptsSection.concurrency", "Recipe.prices",
        "ResponsesSection.batch", "ResponsesSection.concurrency", "StructuredCotSection.batch",
        "StructuredCotSection.concurrency", "StructuredCotSection.license", "TreesSection.concurrency",
    },
    Mark.COUNTS_AS_MODEL: {
        "FromTreesSection.tokenizer", "ModelServer.model", "ModelServer.path", "ModelServer.tokenizer",
        "PairsSection.tokenizer", "PromptsSection.tokenizer", "ResponsesSection.prm",
    },
    Mark.COUNTS_AS_INPUT: {
        "AttacksSection.templates", "BenchmarkSection.config", "BenchmarkSection.hub", "BenchmarkSection.path",
        "BenchmarkSection.revision", "BenchmarkSection.split", "EvaluationJudge.policy", "JudgeSection.policy",
        "RubricFiles.refusal",
        "RubricFiles.simpleqa", "RubricFiles.strongreject", "RubricFiles.winrate", "RubricFiles.xstest",
        "PromptSource.hub", "PromptSource.path", "PromptSource.revision", "PromptsSection.decontaminate",
        "PromptsSection.sources", "StructuredCotSection.hub", "StructuredCotSection.like", "StructuredCotSection.path",
        "StructuredCotSection.policies",
        "StructuredCotSection.revision", "TemplatesSection.helpfulness", "TemplatesSection.safety",
        "TwinsSection.template",
    },
    Mark.COUNTS_WHERE_USED: {
        "AttacksSection.attacker", "AttacksSection.pair", "AttacksSection.pap", "EvaluationJudge.template",
        "PreferencePairsSection.reviews", "PromptsSection.task_judge", "PromptsSection.twins",
        "ResponsesSection.diverse", "ResponsesSection.expansions", "ResponsesSection.max_depth",
        "ResponsesSection.step_tokens", "ResponsesSection.width", "StructuredCotSection.from_trees",
        "StructuredCotSection.gate", "StructuredCotSection.judge", "StructuredCotSection.teacher",
        "StructuredCotSection.teachers", "StructuredCotSection.templates",
    },
    Mark.COUNTS_UNLESS_DEFAULT: {
        "Endpoint.control_tokens", "Endpoint.extra_body", "Endpoint.reasoning_effort", "FromTreesSection.rollouts",
        "JudgeSection.endpoint", "JudgeSection.guard", "JudgeSection.helpfulness", "JudgeSection.labels",
        "JudgeSection.penalise_over_refusal", "PairsSection.rollouts",
        "PreferencePairsSection.trajectory_rule", "PrmPairsSection.whole_answers",
        "PromptSource.turns_before", "Teacher.keep_reasoning",
    },
    Mark.COUNTS_WHERE_SERVED: {"Endpoint.dtype", "ModelServer.max_model_len"},
}  # fmt: skip
"""All fields that don't enter as they stand. A new one here is a promise: that it can't change a row, or that a
generator takes care of it."""

BY_URL = {"base_url": "http://127.0.0.1:9/v1", "model": "actor", "tokenizer": "here/tokenizer"}
SERVED = {"path": "here/model"}
ASKED = {"structured_cot.gate", "structured_cot.judge", "structured_cot.policies", "structured_cot.templates"}
TEMPLATES = {"safety": "here/safety.jinja", "helpfulness": "here/helpfulness.jinja"}
ANSWERS = {"seed", "actor", "actor.model", "actor.tokenizer", "actor.max_model_len"}
STAIR = "thu-ml/STAIR-SFT"


@dataclass(frozen=True, slots=True)
class Case:
    """A build from one source."""

    kind: str
    recipe: Json
    uses: set[str]
    """What enters its fingerprint: sections of the recipe, and of their fields with a mark those that it uses."""
    options: Json = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    unused: frozenset[str] = frozenset()
    """Fields without a mark that decide nothing in this build."""
    refused: frozenset[str] = frozenset()
    """Fields with which such a build can't be asked for."""


QUESTION = {"prompt": "Why?", "question": "How?", "task": "safety", "label": "unsafe", "reference_answer": "So."}
OTHERS = {
    "questions.jsonl": json.dumps(QUESTION | {"prompt": "Who?"}) + "\n",
    "attacks.jsonl": '{"name": "dan", "template": "Do {prompt}"}\n',
}
"""The row that the other version of a file has in addition, where that is not a prompt."""
NAMED = {"columns": {"prompt": "prompt"}}
QUESTIONS = {"path": "here/questions.jsonl"} | NAMED
RUBRICS = ("strongreject", "xstest", "refusal", "simpleqa", "winrate")
ATTACKS = {
    "names": ["none", "tags", "aim", "pap", "pair"],
    "templates": "here/attacks.jsonl",
    "attacker": BY_URL,
}
JUDGED = {"seed", "evaluations", "evaluations.benchmarks.path"}
TESTED = {*ANSWERS, "responses", "responses.prm"}

CASES = {
    "prompts": Case(
        "prompts",
        {
            "prompts": {
                "sources": [{"path": "here/prompts.jsonl"}, {"hub": "org/prompts"}],
                "near_duplicates": {},
                "decontaminate": [{"path": "here/prompts.jsonl"}, {"hub": "org/prompts"}],
                "max_tokens": 10,
                "tokenizer": "here/tokenizer",
                "task_judge": BY_URL,
            }
        },
        {"seed", "prompts", "prompts.sources", "prompts.decontaminate", "prompts.tokenizer", "prompts.task_judge"},
    ),
    "prompts, with a judge that is served": Case(
        "prompts",
        {"prompts": {"sources": [{"path": "here/prompts.jsonl"}], "task_judge": SERVED}},
        {"seed", "prompts", "prompts.sources", "prompts.decontaminate", "prompts.task_judge"},
    ),
    "prompts, with twins": Case(
        "prompts",
        {
            "prompts": {
                "sources": [{"path": "here/prompts.jsonl"}],
                "twins": {"teacher": BY_URL, "template": "here/safety.jinja"},
            }
        },
        {"seed", "prompts", "prompts.sources", "prompts.decontaminate", "prompts.twins"},
    ),
    "prompts, with twins of a teacher that is served": Case(
        "prompts",
        {"prompts": {"sources": [{"path": "here/prompts.jsonl"}], "twins": {"teacher": SERVED}}},
        {"seed", "prompts", "prompts.sources", "prompts.decontaminate", "prompts.twins"},
    ),
    "structured_cot, of a file": Case(
        "structured_cot", {"structured_cot": {"path": "here/rows.jsonl"}}, {"structured_cot", "structured_cot.path"}
    ),
    "structured_cot, of the published file": Case(
        "structured_cot",
        {"structured_cot": {"path": "here/rows.jsonl", "like": STAIR}},
        {"structured_cot", "structured_cot.path", "structured_cot.like", "structured_cot.revision"},
    ),
    "structured_cot, of the Hub": Case(
        "structured_cot",
        {"structured_cot": {"hub": STAIR, "teacher": BY_URL}},
        {"structured_cot", "structured_cot.hub", "structured_cot.revision"},
    ),
    "structured_cot, of trees": Case(
        "structured_cot",
        {"structured_cot": {"from_trees": {"tokenizer": "here/tokenizer"}}},
        {"seed", "structured_cot", "structured_cot.from_trees"},
    ),
    "structured_cot, by a teacher": Case(
        "structured_cot",
        {"structured_cot": {"teacher": BY_URL, "judge": BY_URL, "templates": TEMPLATES}},
        {"seed", "structured_cot", "structured_cot.teacher", *ASKED},
    ),
    "structured_cot, by teachers that are served": Case(
        "structured_cot",
        {
            "structured_cot": {
                "teacher": BY_URL,
                "teachers": {"a": SERVED, "b": SERVED | {"temperature": 0}},
                "judge": SERVED,
                "templates": TEMPLATES,
            }
        },
        {"seed", "structured_cot", "structured_cot.teachers", *ASKED},
        {"asking": TeacherOptions(("a", "b"))},
    ),
    "trees": Case(
        "trees",
        {"actor": BY_URL, "trees": {"judge": {"kind": "endpoint", "endpoint": BY_URL}}},
        {"seed", "trees", "actor", "actor.model", "actor.tokenizer", "actor.max_model_len"},
    ),
    "trees, of models that are served": Case(
        "trees",
        {"actor": SERVED, "trees": {"judge": {"kind": "endpoint", "endpoint": SERVED}}},
        {"seed", "trees", "actor", "actor.dtype", "actor.path", "actor.tokenizer", "actor.max_model_len"},
    ),
    "trees, by a guard with a policy": Case(
        "trees",
        {
            "actor": BY_URL,
            "trees": {
                "judge": {
                    "kind": "guard",
                    "guard": "policy",
                    "policy": "here/policy.txt",
                    "endpoint": BY_URL,
                    "helpfulness": BY_URL,
                }
            },
        },
        {"seed", "trees", "actor", "actor.model", "actor.tokenizer", "actor.max_model_len"},
    ),
    "preference_pairs": Case(
        "preference_pairs",
        {"preference_pairs": {"tokenizer": "here/tokenizer"}},
        {"seed", "preference_pairs", "preference_pairs.tokenizer"},
    ),
    "preference_pairs, reviewed": Case(
        "preference_pairs",
        {"preference_pairs": {"tokenizer": "here/tokenizer"}},
        {"seed", "preference_pairs", "preference_pairs.tokenizer", "preference_pairs.reviews"},
        {"reviews": "reviews"},
    ),
    "prm_pairs": Case(
        "prm_pairs",
        {"prm_pairs": {"tokenizer": "here/tokenizer"}},
        {"seed", "prm_pairs", "prm_pairs.tokenizer"},
    ),
    "responses": Case(
        "responses",
        {"actor": BY_URL, "responses": {"prm": "here/model"}},
        {"responses", "responses.prm", *ANSWERS},
    ),
    "responses, by a beam search with a PRM that is served": Case(
        "responses",
        {"actor": BY_URL, "responses": {"method": "beam", "prm": SERVED | {"serve": True}}},
        {"responses", "responses.prm", *ANSWERS, *(f"responses.{key}" for key in BEAM_KEYS)},
    ),
    "responses, with a PRM by URL": Case(
        "responses",
        {"actor": BY_URL, "responses": {"method": "best_of_n", "prm": BY_URL}},
        {"responses", "responses.prm", *ANSWERS},
    ),
    "evaluations, attacked and judged by rubrics": Case(
        "evaluations",
        {
            "actor": BY_URL,
            "evaluations": {
                "benchmarks": [
                    {"name": f"of {score}", "score": score, "task": "safety"} | QUESTIONS for score in RUBRICS
                ],
                "attacks": ATTACKS,
                "models": [BY_URL | {"model": "other"}],
                "judge": {
                    "kind": "rubric",
                    "template": {score: f"here/{score}.jinja" for score in RUBRICS},
                    "base_url": "http://127.0.0.1:9/v1",
                    "model": "judge",
                },
            },
        },
        {
            *JUDGED,
            *TESTED,
            *(f"evaluations.attacks.{key}" for key in ("attacker", "pair", "pap", "templates")),
            "evaluations.judge.template",
            *(f"evaluations.judge.template.{score}" for score in RUBRICS),
        },
    ),
    "evaluations, of a Hub dataset, by a guard that is served": Case(
        "evaluations",
        {
            "actor": SERVED,
            "evaluations": {
                "benchmarks": [{"name": "of strongreject", "hub": "org/questions", "revision": "main"} | NAMED],
                "attacks": {"names": ["none", "pap"], "attacker": SERVED},
                "models": [{"path": "here/prm"}],
                "judge": {"kind": "guard", "guard": "policy", "policy": "here/policy.txt"} | SERVED,
            },
        },
        {
            *JUDGED,
            *TESTED - {"actor.model"},
            "actor.dtype",
            "actor.path",
            *(f"evaluations.benchmarks.{key}" for key in ("config", "hub", "revision", "split")),
            *("evaluations.attacks.attacker", "evaluations.attacks.pap", "evaluations.judge.policy"),
        },
    ),
    "evaluations, of answers that are given": Case(
        "evaluations",
        {
            "evaluations": {
                "benchmarks": [{"name": "of strongreject"} | QUESTIONS],
                "models": [BY_URL],
                "judge": {"kind": "rubric", "base_url": "http://127.0.0.1:9/v1", "model": "judge"},
            }
        },
        {*JUDGED, "evaluations.judge.template", "evaluations.judge.template.refusal"},
        inputs=("responses",),
        unused=frozenset({"attacks", "models", "with_actor"}),
        refused=frozenset(
            {"evaluations.attacks.names", "evaluations.benchmarks.0.columns", "evaluations.exclude_seen"}
        ),
    ),
}


class Planned(Exception):  # noqa: N818 - it ends a build that is planned
    """What a build would build."""

    def __init__(self, plan: BuildPlan) -> None:
        super().__init__(plan.fingerprint)
        self.plan = plan


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder with what the recipes name, another version of each, and artifacts to build from.

    What is in `here` is in `moved`, too, and in `other` with other content under other names.
    """
    home = tmp_path_factory.mktemp("home")
    here = home / "here"
    here.mkdir()
    shutil.copytree(tokenizer_folder, here / "tokenizer")
    shutil.copytree(tokenizer_folder, here / "model")
    reward_model = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (here / "model" / "config.json").write_text(json.dumps(reward_model))
    (here / "model" / "model.safetensors").write_bytes(b"weights")
    shutil.copytree(here / "model", here / "prm")
    (here / "prm" / "config.json").write_text(
        '{"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}'
    )
    for name in ("safety.jinja", "helpfulness.jinja"):
        (here / name).write_text("{{ prompt }}")
    for name in ("prompts.jsonl", "rows.jsonl"):
        (here / name).write_text('{"prompt": "Why?", "task": "safety"}\n')
    (here / "questions.jsonl").write_text(json.dumps(QUESTION) + "\n")
    (here / "attacks.jsonl").write_text('{"name": "aim", "template": "Max, {prompt}"}\n')
    (here / "policy.txt").write_text("Nothing that hurts.\n")
    for name in RUBRICS:
        (here / f"{name}.jinja").write_text("{{ prompt }} {{ answer }} {{ first }} {{ second }}")
    shutil.copytree(here, home / "moved")
    (home / "other").mkdir()
    for path in here.iterdir():
        other = home / "other" / f"other_{path.name}"
        if path.is_dir():
            shutil.copytree(path, other)
            (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
        else:
            other.write_text(path.read_text() + OTHERS.get(path.name, '{"prompt": "Who?", "task": "safety"}\n'))
    return home


@pytest.fixture
def plan_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case, FullRecipe], BuildPlan]:
    """Plan a build, and begin none."""

    def begin(plan: BuildPlan, *_: Any, **__: Any) -> None:
        raise Planned(plan)

    root = home / "artifacts"
    if not root.exists():
        trees = [(1, 0, block("A:", "a"), False, 1.0, 4), (2, 0, block("B:", "b"), False, 0.0, 4)]
        whole = [*trees, (3, 1, answer("one"), True, 2.0, 4)]
        artifact_of(root, [tree_of(whole, 0, tokens=None)])
        build_prompts(Recipe(prompts={"sources": [{"path": home / "here/prompts.jsonl"}]}), BuildOptions(root=root))
        pairs = build_preference_pairs(Recipe(), BuildOptions(root=root))
        pair_id = pairs.scan().select("pair_id").collect().item()
        build_reviews([review(pair_id, "ann", "chosen")], pairs, Source("dataset", "pairs", "pairs/1"), root)
        _answer_of(root)
    for module in ("stairdata.runs.build", "stairdata.generators.structured_cot.plan"):
        monkeypatch.setattr(f"{module}.begin_build", begin)
    for name in ("load_tokenizer", "tokenizer_hash"):  # they are read hundreds of times
        monkeypatch.setattr(rendering, name, functools.cache(getattr(rendering, name)))
    monkeypatch.setattr("stairdata.generators.prompts.mapping.hub_revision", lambda *named: f"commit of {named[:2]}")
    monkeypatch.setattr("stairdata.generators.prompts.mapping.hub_license", lambda *_: "mit")
    of_benchmarks = "stairdata.generators.evaluations.benchmarks.loading"
    monkeypatch.setattr(f"{of_benchmarks}.hub_revision", lambda *named: f"commit of {named}")
    monkeypatch.setattr(f"{of_benchmarks}.hub_license", lambda *_: "mit")
    read_rows = mapping.raw_rows
    on_hub = [("org/questions", 1, QUESTION)]
    monkeypatch.setattr(f"{of_benchmarks}.raw_rows", lambda pinned: on_hub if pinned.source.hub else read_rows(pinned))
    monkeypatch.chdir(home)

    def plan(case: Case, recipe: FullRecipe) -> BuildPlan:
        with pytest.raises(Planned) as planned:
            build_kind(case.kind, recipe, BuildOptions(root=root, inputs=case.inputs), **case.options)
        return planned.value.plan

    return plan


def _answer_of(root: Path) -> None:
    """Put an artifact of one response there."""
    prompt_id = identity.prompt_id("Why?")
    row = {
        "response_id": "a" * 16, "prompt_id": prompt_id, "prompt": "Why?", "task": "safety", "method": "sample",
        "model": "actor", "n": 1, "candidates": [{"text": "So.", "score": None, "is_complete": True, "tokens": 2}],
        "chosen_index": 0, "text": "So.", "completion_tokens": 2, "requests": 1, "prompt_tokens": 2,
    }  # fmt: skip
    schema = polars_schema("responses")
    plan = BuildPlan("responses", "test/1", {}, parents=[Parent(kind="prompts", version="1.0.0", content_hash="0")])
    build = building.begin_build(plan, root)
    assert not isinstance(build, Artifact)
    with build:
        build.finish([pl.DataFrame([{name: row.get(name) for name in schema}], schema=schema)])


# -- all fields of a recipe ----------------------------------------------------------------------------------


class Key(NamedTuple):
    """A field of a section in a recipe."""

    place: Place
    owners: tuple[tuple[BaseModel, str], ...]
    """The sections that lead to it, each with the name of the field that leads on; its own at last."""

    @property
    def value(self) -> Any:
        return getattr(*self.owners[-1])

    @property
    def shown(self) -> str:
        return ".".join(map(str, self.place))


def keys_of(section: BaseModel, place: Place = (), owners: tuple[tuple[BaseModel, str], ...] = ()) -> Iterator[Key]:
    """Yield all fields that are there, those of the sections in lists and dicts, too; sections themselves are none."""
    for name, value in section:
        here = (*owners, (section, name))
        inside: list[tuple[Place, BaseModel]] = [((), value)] if isinstance(value, BaseModel) else []
        if isinstance(value, list | dict):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inside = [((key,), each) for key, each in items if isinstance(each, BaseModel)]
        for key, each in inside:
            yield from keys_of(each, (*place, name, *key), here)
        if not inside:
            yield Key((*place, name), here)


def counts(case: Case, owners: tuple[tuple[BaseModel, str], ...]) -> bool:
    """Return whether a field has to enter the fingerprint of a build."""
    names = [name for _, name in owners]
    return names[0] in case.uses and all(
        _counts(case, names[:depth], section, name) for depth, (section, name) in enumerate(owners)
    )


def _counts(case: Case, above: list[str], section: BaseModel, name: str) -> bool:
    mark = mark_of(type(section), name)
    if mark in {None, Mark.COUNTS_UNLESS_DEFAULT}:
        return len(above) != 1 or name not in case.unused
    if mark is Mark.CANNOT_CHANGE_RESULT:
        return False
    is_named = mark in {Mark.COUNTS_AS_INPUT, Mark.COUNTS_WHERE_USED} and above[:1] == ["evaluations"]
    if len(above) == 1 or is_named:
        return ".".join([*above, name]) in case.uses
    if isinstance(section, ModelServer):
        is_served = section.path is not None
        if isinstance(section, PrmEndpoint) and name == "dtype":
            return True  # of a server elsewhere, too: it says what that was started with
        is_length_told = is_served or isinstance(section, EvaluatedModel)
        return {"dtype": is_served, "max_model_len": is_length_told, "model": not is_served}.get(name, True)
    return True


def is_fixed(section: BaseModel, name: str) -> bool:
    """Return whether a field has but one value, or is null and would make another build, which has its own case."""
    annotation = type(section).model_fields[name].annotation
    if get_origin(annotation) is Literal and len(get_args(annotation)) == 1:
        return True
    if isinstance(section, ModelServer):
        return name == "path" and section.base_url is not None
    if isinstance(section, PromptSource):
        return name == "path" if section.hub else name in {"hub", "revision"}
    if isinstance(section, BenchmarkSection):
        if name == "like":  # none that is known has labels and right answers, too
            return section.score in {"xstest", "simpleqa", "winrate"}
        return name == "path" if section.hub else name in {"hub", "revision", "config", "split"}
    is_source = isinstance(section, StructuredCotSection) and name in {"from_trees", "path", "hub", "like"}
    is_asked = isinstance(section, PromptsSection) and name in {"task_judge", "twins"}
    return (is_source or is_asked) and getattr(section, name) is None


def another(section: BaseModel, name: str) -> Any:
    """Return another value that a field may have: a model or file that is there, else by the field's type."""
    value, there = getattr(section, name), _there(section, name)
    if there is not None:
        return there[0]
    info = type(section).model_fields[name]
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[info.annotation, info])  # type: ignore[arg-type]
    for candidate in (*_near(value), *_literals(info.annotation), *_ANY):
        try:
            found = adapter.validate_python(candidate)
        except ValidationError:
            continue
        if adapter.dump_json(found) != adapter.dump_json(value):
            return found
    raise AssertionError(f"{type(section).__name__}.{name}: say here what else it may be than {value!r}")


def _there(section: BaseModel, name: str) -> tuple[Any] | None:
    others: list[tuple[type[BaseModel], str, Any]] = [
        (ModelServer, "path", "other/other_model"),
        (BaseModel, "tokenizer", "other/other_tokenizer"),
        (BaseModel, "prm", "other/other_prm"),
        (PromptSource, "path", Path("other/other_prompts.jsonl")),
        (PromptSource, "like", "PKU-Alignment/PKU-SafeRLHF"),
        (BaseModel, "sources", [PromptSource(path=Path("other/other_prompts.jsonl"))]),
        (RoundsSection, "sft_prompts", [PromptSource(path=Path("other/other_prompts.jsonl"))]),
        (RoundsSection, "stop_below", {"grammar": 0.5}),
        (RoundsSection, "searches", [SearchSettings()]),
        (RoundsSection, "reviews", {1: "reviews"}),
        (BaseModel, "decontaminate", ["other/other_prompts.jsonl"]),
        (BenchmarkSection, "path", Path("other/other_questions.jsonl")),
        (BenchmarkSection, "like", "do-not-answer"),
        (BenchmarkSection, "columns", {"prompt": "question"}),
        (BenchmarkSection, "where", {"task": "safety"}),
        (EvaluationJudge, "policy", Path("other/other_policy.txt")),
        (StructuredCotSection, "policies", {"default": Path("other/other_policy.txt")}),
        (JudgeSection, "policy", Path("other/other_policy.txt")),
        (JudgeSection, "helpfulness", Endpoint(base_url="http://127.0.0.1:9/v1", model="other")),
        (RubricFiles, name, Path(f"other/other_{name}.jinja")),
        (AttacksSection, "templates", Path("other/other_attacks.jsonl")),
        (EvaluationsSection, "benchmarks", [BenchmarkSection(name="xstest")]),
        (EvaluationsSection, "models", [EvaluatedModel(base_url="http://127.0.0.1:9/v1", model="other")]),
        (AttacksSection, "names", ["rot13"]),
        (PapSection, "techniques", ["logical_appeal"]),
        (AttacksSection, "benchmarks", ["of strongreject"]),
        (AttacksSection, "attacker", Attacker(base_url="http://127.0.0.1:9/v1", model="other")),
        (StructuredCotSection, "path", Path("other/other_rows.jsonl")),
        (StructuredCotSection, "like", None),  # there is but one published set: back to a file of one's own,
        (StructuredCotSection, "hub", None),  # or to a teacher
        (TemplatesSection, name, Path(f"other/other_{name}.jinja")),
        (TwinsSection, "template", Path("other/other_safety.jinja")),
        (TwinsSection, "tasks", ["helpfulness"]),
    ]
    return next(((value,) for kind, key, value in others if isinstance(section, kind) and name == key), None)


def _near(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1, value / 2]
    return [f"{value}x"] if isinstance(value, str) else []


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for argument in get_args(annotation):
        yield from _literals(argument)


_ANY: list[Any] = [1, 0.5, 0.25, 100, "other", True, ["other"], {"prompt": "other"}, {1: 0.25}, {}, {"other": {}}, []]


def replaced(value: Any, place: Place, new: Any) -> Any:
    """Put a value in a place of a recipe, without the checks that one key makes on another."""
    if not place:
        return new
    key, rest = place[0], place[1:]
    if isinstance(value, BaseModel):
        assert isinstance(key, str)
        return value.model_copy(update={key: replaced(getattr(value, key), rest, new)})
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    changed[key] = replaced(value[key], rest, new)
    return changed


@pytest.mark.parametrize("name", CASES)
def test_a_key_enters_the_fingerprint_exactly_where_it_decides_rows(
    name: str, plan_of: Callable[[Case, FullRecipe], BuildPlan]
) -> None:
    case = CASES[name]
    recipe = FullRecipe.model_validate(case.recipe)
    before = plan_of(case, recipe).fingerprint
    wrong = []
    for key in keys_of(recipe):
        section, field_name = key.owners[-1]
        if key.place[0] not in case.uses or is_fixed(section, field_name) or key.shown in case.refused:
            continue
        changed = replaced(recipe, key.place, another(section, field_name))
        if (plan_of(case, changed).fingerprint != before) is not counts(case, key.owners):
            wrong.append(f"{key.shown} {'is missing' if counts(case, key.owners) else 'enters'}")
        if str(key.value).startswith("here/"):
            moved = type(key.value)(str(key.value).replace("here/", "moved/"))
            if plan_of(case, replaced(recipe, key.place, moved)).fingerprint != before:
                wrong.append(f"{key.shown} counts by its place")
    assert not wrong


@pytest.mark.parametrize("name", CASES)
def test_sections_of_other_stages_never_enter(name: str, plan_of: Callable[[Case, FullRecipe], BuildPlan]) -> None:
    case = CASES[name]
    recipe = changed = FullRecipe.model_validate(case.recipe)
    others = [key for key in keys_of(recipe) if key.place[0] not in case.uses and not is_fixed(*key.owners[-1])]
    assert {"sft", "prices"} <= {key.place[0] for key in others}
    for key in others:
        changed = replaced(changed, key.place, another(*key.owners[-1]))
    assert plan_of(case, changed).fingerprint == plan_of(case, recipe).fingerprint


def test_every_field_of_every_section_is_used_by_some_case() -> None:
    used = set()
    for case in CASES.values():
        for key in keys_of(FullRecipe.model_validate(case.recipe)):
            for depth, (section, name) in enumerate(key.owners):
                is_used = depth == 0 or counts(case, key.owners[:depth])
                if is_used and not is_fixed(section, name):
                    used.add(f"{type(section).__name__}.{name}")
    fixed = {"PrmPairsSection.granularity"}
    assert set(_fields(Recipe)) - {each.replace("FullRecipe.", "Recipe.") for each in used} == fixed


def _fields(section: type[BaseModel]) -> Iterator[str]:
    """Yield the fields of all sections, but for what lies below one that can't change rows."""
    for name, info in section.model_fields.items():
        yield f"{section.__name__}.{name}"
        if mark_of(section, name) is not Mark.CANNOT_CHANGE_RESULT:
            for inner in _sections(info.annotation):
                yield from _fields(inner)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def test_the_marked_fields_are_these() -> None:
    found: dict[Mark, set[str]] = {mark: set() for mark in Mark}
    sections: set[type[BaseModel]] = {Recipe, *_all_sections(Recipe)}
    for section in sections:
        for name in section.model_fields:
            mark, home = mark_of(section, name), next(each for each in section.__mro__ if name in each.__annotations__)
            if mark is not None:
                found[mark].add(f"{home.__name__}.{name}")
    assert found == MARKED


def _all_sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for info in section.model_fields.values():
        for inner in _sections(info.annotation):
            yield inner
            yield from _all_sections(inner)


# -- counted_settings itself -------------------------------------------------------------------------------------


def test_evaluation_prompts_read_in_the_usual_way_enter_as_they_always_did(
    plan_of: Callable[[Case, FullRecipe], BuildPlan],
) -> None:
    def decontaminated(*given: Any) -> Any:
        section = {"sources": [{"path": "here/prompts.jsonl"}], "decontaminate": list(given)}
        case = Case("prompts", {}, set())
        return plan_of(case, FullRecipe.model_validate({"prompts": section})).configuration["decontaminate"]

    plain, *others = decontaminated(
        {"path": "here/prompts.jsonl"},
        "here/prompts.jsonl",
        {"path": "here/prompts.jsonl", "columns": {"prompt": "prompt"}},
    )
    assert plain.keys() == {"name", "sha256"}
    assert others == [plain, plain]
    (hub,) = decontaminated({"hub": "org/prompts", "revision": "main"})
    assert hub.keys() == {"name", "sha256"}
    (known,) = decontaminated({"hub": STAIR, "columns": {"prompt": "prompt"}, "split": "test"})
    assert known["read_as"] == {"columns": {"prompt": "prompt"}, "split": "test"}


def test_a_number_enters_by_the_type_of_its_field() -> None:
    """A default of 0 in a field of floats is dumped as 0.0, and hashed so."""
    settings = counted_settings(Recipe.model_validate({"prompts": {"task_judge": {}}}).prompts.task_judge or Endpoint())
    assert settings == {"max_tokens": 64, "temperature": 0.0, "reasks": 2}
    assert isinstance(settings["temperature"], float)


@pytest.mark.parametrize(("served", "length"), list(itertools.product([True, False], [4096, 8192])))
def test_the_length_of_a_judge_counts_where_it_is_served_and_is_not_the_default(served: bool, length: int) -> None:
    endpoint = (SERVED if served else BY_URL) | {"max_model_len": length}
    judge = Recipe.model_validate({"trees": {"judge": {"kind": "endpoint", "endpoint": endpoint}}}).trees.judge
    expected = {"max_model_len": length} if served and length != 4096 else None
    assert counted_settings(judge).get("endpoint") == expected
