"""The recipe: one YAML file, one section a stage, each key with a default and a meaning.

The sections of the training stages (`sft`, `dpo`, `prm`) belong to `stairdata_training`; the command line joins
them to these. Nothing here reads the environment or touches the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stairdata.fingerprints import Mark
from stairdata_schemas.errors import RecipeError, UsageError, nearest, quote

Share = Annotated[float, Field(ge=0, le=1)]
Concurrency = Annotated[int, Field(ge=1)] | Literal["auto"]
Task = Literal["safety", "helpfulness"]
MOST = 2**63 - 1
"""The largest number that a column of whole numbers holds."""


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Sampling(Section):
    """How a model samples."""

    temperature: float = Field(1.2, ge=0)
    """0 is greedy."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling; 1 turns it off (on CPU it is vLLM's bottleneck)."""
    top_k: int = Field(50, ge=0)
    """0 turns it off; sent only to servers that are not OpenAI's."""


PromptColumn = Literal["prompt", "task", "source", "category", "reference_answer", "reference_is_safe"]


class PromptSource(Section):
    """One source of prompts: local files or a Hub dataset."""

    path: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """A .json, .jsonl, .csv or .parquet file (the first three also as .gz or .xz), or a folder of such files, relative
    to the working folder."""
    hub: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """A Hub dataset id; read through `datasets`, never with remote code. Known ones need no columns."""
    like: str | None = None
    """Read the rows as those of a known Hub dataset: {path: train.jsonl, like: PKU-Alignment/PKU-SafeRLHF}."""
    revision: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """Commit, tag or branch of the Hub dataset; default: a known one's tested commit, else its head. Recorded as a
    commit either way."""
    config: str | None = None
    """The Hub dataset's configuration."""
    split: str | None = None
    """The Hub dataset's split; default: a known one's own, else train."""
    columns: dict[PromptColumn, str] = {}
    """Our column name to the source's, where they differ: {prompt: question, task: type}. Dots lead into what is
    nested: {prompt: conversations.0.value}."""
    where: dict[str, bool | int | float | str | list[bool | int | float | str]] = {}
    """Take only rows whose columns have these values (or one of them): {language: English}. Case does not matter."""
    task: Task | None = None
    """Task of every row, for sources that have no such column."""
    name: str | None = None
    """Value of the `source` column; default: the source's own column, else the file's name or the Hub id."""
    license: Annotated[str | None, Mark.CANNOT_CHANGE_ROWS] = None
    """The source's licence as the Hub names it, such as cc-by-nc-4.0; a Hub dataset's own card says it otherwise."""
    near_duplicates: bool | None = None
    """false: keep prompts that resemble each other. Default true, but for known sources of many prompts in one form."""
    skip: int = Field(0, ge=0)
    """Leave out that many rows at the start."""
    count: int | None = Field(None, ge=1)
    """Take that many prompts, sampled with the recipe's seed after all filters; default all."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path or hub")
        return self


class NearDuplicatesSection(Section):
    """How alike two prompts may be."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard index of their character n-grams from which on the later one is refused."""
    ngram: int = Field(5, ge=1)
    """Characters of an n-gram, case and punctuation left out."""
    permutations: int = Field(128, ge=16, le=1024)
    """Hash functions of the MinHash that finds the candidates; their index is then computed exactly."""


class ContaminationSection(Section):
    """What counts as an overlap with evaluation prompts, besides the same words in the same order."""

    ngram: int = Field(13, ge=1)
    """So many words in a row that both have; shorter evaluation prompts count as a whole."""
    min_words: int = Field(5, ge=1)
    """An evaluation prompt of fewer words counts only where the whole prompt is the same."""
    threshold: float = Field(0.8, gt=0, le=1)
    """Near duplicates count from this Jaccard index of character 5-grams on."""


class Endpoint(Section):
    """A model: by folder or Hub id, served by vLLM for the duration of a build, or by the URL of a server."""

    path: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """A model folder or Hub id, served for the duration."""
    base_url: Annotated[str | None, Mark.CANNOT_CHANGE_ROWS] = None
    """An OpenAI-compatible server instead, such as http://127.0.0.1:8000/v1."""
    model: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """The server's name for the model; needed with base_url."""
    tokenizer: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder or Hub id of the tokenizer whose chat template renders prompts; default: path."""
    api_key_env: Annotated[str, Mark.CANNOT_CHANGE_ROWS] = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never in a recipe."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_ROWS] = "auto"
    """Requests in flight at most. auto: as many as make the server faster, up to 512. Either way fewer while it says
    that it is overloaded."""
    timeout: Annotated[float, Mark.CANNOT_CHANGE_ROWS] = Field(600, gt=0)
    """Seconds a request may take."""
    retries: Annotated[int, Mark.CANNOT_CHANGE_ROWS] = Field(8, ge=0)
    """How often a failed request is sent again, with exponential back-off."""
    retry_seconds: Annotated[float, Mark.CANNOT_CHANGE_ROWS] = Field(900, ge=0)
    """Seconds after which a failed request is not sent again; a server that asks for a longer wait stops the build."""
    max_model_len: Annotated[int, Mark.COUNTS_WHERE_SERVED] = Field(4096, ge=64)
    """Context length of the served model, in tokens: prompt and answer together."""
    port: Annotated[int, Mark.CANNOT_CHANGE_ROWS] = Field(0, ge=0, le=65535)
    """Port of the served model; 0 takes a free one."""

    @property
    def name(self) -> str:
        """What prices and rows call the model: its name at the server, or the last part of its folder."""
        return self.model or Path(self.path or "").name

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.path and self.base_url:
            raise ValueError("give either path (served here) or base_url (served elsewhere), not both")
        return self


class TaskJudge(Endpoint):
    """The model that says which task a prompt is."""

    max_tokens: int = Field(64, ge=1)
    """Tokens of one answer; a model that reasons first needs more."""
    temperature: float = Field(0, ge=0)
    """Sampling temperature."""
    reasks: int = Field(2, ge=0)
    """How often an answer that can't be read is asked again before the row is refused."""


class PromptsSection(Section):
    """Stage `prompts`: where prompts come from, and which are left out."""

    sources: Annotated[list[PromptSource], Mark.COUNTS_AS_INPUT] = []
    """Where prompts come from, in order; of duplicates the first is kept, the others go to quarantine."""
    near_duplicates: NearDuplicatesSection | None = None
    """Refuse prompts that are nearly those of an earlier row ({} for the defaults); off by default, since prompts in
    one form, such as jailbreaks, are alike on purpose."""
    decontaminate: Annotated[list[str | PromptSource], Mark.COUNTS_AS_INPUT] = []
    """Evaluation prompts that must not be in the data: files, prompts artifacts, or sources with columns."""
    contamination: ContaminationSection = ContaminationSection()
    """What counts as an overlap with them."""
    languages: list[str] = []
    """Keep prompts in these languages alone, as ISO 639 codes: [en, zh]; empty keeps all."""
    min_language_probability: float = Field(0.2, ge=0, le=1)
    """Refuse a prompt where these languages have less than this share of the probability that they and the likeliest
    other one have; text without a language, such as a formula, is kept."""
    min_characters: int = Field(1, ge=1)
    """Refuse shorter prompts."""
    max_characters: int | None = Field(None, ge=1)
    """Refuse longer prompts."""
    max_tokens: int | None = Field(None, ge=1)
    """Refuse prompts of more tokens."""
    tokenizer: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder or Hub id of the tokenizer that counts them; default: the actor's."""
    task_judge: Annotated[TaskJudge | None, Mark.COUNTS_WHERE_USED] = None
    """The model that labels rows without a task; without it such rows are refused."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_ROWS] = "auto"
    """Prompts at the judge at a time; auto: one is begun whenever the server could take one more request."""


class JudgeSection(Section):
    """Who rates answers."""

    kind: Literal["self", "rule", "reference", "endpoint"] = "self"
    """self: the actor rates its own answers. rule: the published code's rule on safety prompts, the actor's
    rating on the others. reference: no model; the rule, and word F1 against reference_answer. endpoint: another
    model rates."""
    style: Literal["reasoned", "direct"] = "reasoned"
    """reasoned: a short assessment, then the score. direct: the score alone, in one token; where the server gives
    log-probabilities it is the expected score over 1 to 5."""
    cache: bool = True
    """Judge equal answers of one tree once (the paper asks each time)."""
    keep_text: bool = False
    """Keep what the judge said, in the column `judgements`."""
    temperature: float = Field(0.6, ge=0)
    """Sampling temperature of the rating."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of the rating."""
    max_tokens: int = Field(256, ge=1)
    """Tokens of one rating."""
    reasks: int = Field(3, ge=0)
    """How often a rating that can't be read is asked again before the judge counts as failed."""
    endpoint: Annotated[Endpoint | None, Mark.COUNTS_UNLESS_DEFAULT] = None
    """The judge's server, for kind endpoint."""

    @model_validator(mode="after")
    def _endpoint_is_named(self) -> Self:
        if (self.kind == "endpoint") != (self.endpoint is not None):
            raise ValueError("judge.endpoint goes with kind endpoint, and only with it")
        return self


class TreesSection(Sampling):
    """Stage `trees`: SI-MCTS (paper section 3.2 and Algorithm 1)."""

    iterations: int = Field(200, ge=1, le=MOST)
    """Iterations of select, expand, evaluate, back up in each tree."""
    samples: int = Field(4, ge=1)
    """Steps sampled at one expansion (m)."""
    max_depth: int = Field(7, ge=1)
    """Depth at which nodes are not expanded any more."""
    c: float = Field(1.5, ge=0)
    """Exploration constant."""
    score: Literal["ucb", "pucb"] = "ucb"
    """How a child is selected. ucb: V + c sqrt(ln N_parent / N). pucb: V + c p sqrt(N_parent) / (1 + N), where p is the
    mean probability of the child's tokens; needs a server that gives log-probabilities."""
    prior: Literal["arithmetic", "geometric"] = "arithmetic"
    """Which mean of the token probabilities p is."""
    parallel: int = Field(1, ge=1)
    """Rollouts of one tree at a time, kept apart by a virtual loss; more than 1 changes the search (a deviation from
    the paper) and helps only where there are fewer prompts than the server could answer at once."""
    virtual_loss: float = Field(1.0, ge=0)
    """With parallel rollouts: reward taken from the nodes above a rollout under way."""
    max_tokens: int = Field(2048, ge=1)
    """Tokens of one step; a step cut there is dropped and counted."""
    rollout_tokens: int = Field(2048, ge=1)
    """Tokens of one rollout; cut there, it is judged as it stands."""
    fused: bool = True
    """Sample whole answers at an expansion: the first step of each is a child, the rest that child's first rollout,
    backed up when the search first visits the child. The same distribution of trees in one request instead of m+1,
    wherever no token limit cuts."""
    visit_all_leaves: bool = True
    """Evaluate every leaf that is still unvisited at the end."""
    judge: JudgeSection = JudgeSection()
    """Who rates answers."""
    k1: float = Field(1.0, ge=1)
    """Weight of safety times helpfulness in R = (k1 + k2) S + k1 S H."""
    k2: float = Field(1.0, gt=0, le=1)
    """Extra weight of safety in R."""
    trees_per_prompt: int = Field(1, ge=1)
    """Trees grown from each prompt, each with randomness of its own."""
    round: int = Field(1, ge=0, le=MOST)
    """Iteration of the self-improvement loop, written into the rows."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_ROWS] = "auto"
    """Trees in flight at most; auto: a tree is begun whenever the actor could take one more request."""


class PairsSection(Section):
    """Stages `preference_pairs` and `prm_pairs`; thresholds as published, selection beyond that off."""

    min_margin: float = Field(0.5, ge=0)
    """The chosen value has to exceed the rejected one by more than this."""
    min_chosen_value: float = 0.8
    """The chosen value has to be at least this."""
    min_visits: int = Field(4, ge=1, le=MOST)
    """Each side is terminal or visited at least that often."""
    max_tokens: int = Field(2048, ge=1)
    """Rendered prompt plus path may have at most that many tokens; a node too long is in no pair, nor is any below."""
    tokenizer: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder or Hub id of the tokenizer that measures what has no `tokens` in the trees and more UTF-8 bytes than
    max_tokens; default: the actor's."""
    min_margin_by_depth: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(ge=0)]] = {}
    """min_margin for some depths of the chosen node: {1: 0.8, 2: 0.6}."""
    grammatical: bool = False
    """Drop pairs whose chosen step is no block of the step grammar."""
    max_similarity: float | None = Field(None, gt=0, le=1)
    """Drop near duplicates inside a tree: a pair of which both compared steps share at least this part of their words
    (Jaccard index) with those of a pair of larger margin."""
    max_per_depth: int | None = Field(None, ge=1)
    """Pairs of one depth (and granularity) of a tree at most; more are sampled."""
    max_per_tree: int | None = Field(None, ge=1)
    """Pairs of a tree at most; more are sampled."""
    max_per_prompt: int | None = Field(None, ge=1)
    """Pairs of a prompt at most, over all its trees; more are sampled."""
    balance: bool = False
    """Sample as many pairs of safety prompts as of helpfulness prompts; pairs without a task are dropped."""
    hold_out: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts set aside for evaluation; the same prompts for both kinds of pairs at the same seed."""
    part: Literal["train", "held_out"] = "train"
    """Which prompts this build takes: those to train on, or those that hold_out set aside."""

    @model_validator(mode="after")
    def _part_needs_a_split(self) -> Self:
        if self.part == "held_out" and not self.hold_out:
            raise ValueError("part: held_out needs a hold_out above 0")
        return self


class ReviewsSection(Section):
    """What reviewers' verdicts do to pairs, for `build preference-pairs --reviews REF`."""

    policy: Literal["majority", "unanimous", "any_veto"] = "majority"
    """Who decides on a pair. majority: more than half of its verdicts. unanimous: all of them. any_veto: a single
    `rejected` or `both_bad` overrules it. Whatever has no decision is a tie, and ties are dropped, as is what is
    decided to be both bad."""
    overruled: Literal["flip", "drop"] = "drop"
    """What becomes of a pair that reviewers decide the other way. flip: the other side is the chosen one (after a veto
    only where more verdicts say so than say chosen or both_bad)."""
    unreviewed: Literal["keep", "drop"] = "keep"
    """What becomes of a pair with fewer verdicts than min_reviews."""
    min_reviews: int = Field(1, ge=1)
    """Verdicts that a pair needs before they decide."""

    @field_validator("policy", mode="before")
    @classmethod
    def _dashes_too(cls, value: Any) -> Any:
        return value.replace("-", "_") if isinstance(value, str) else value


class PreferencePairsSection(PairsSection):
    """Stage `preference_pairs`: which pairs are taken from trees. Thresholds are the published code's."""

    reviews: Annotated[ReviewsSection, Mark.COUNTS_WHERE_USED] = ReviewsSection()
    """How verdicts decide, where --reviews names some."""

    granularity: Literal["step", "trajectory"] = "step"
    """step: siblings of one parent. trajectory: whole answers, good ones against bad ones (the paper's ablation)."""
    max_repeats: int = Field(4, ge=1)
    """trajectory: of a tree's good and bad answers the fewer are repeated, at most that often."""


class PrmPairsSection(PairsSection):
    """Stage `prm_pairs`; pairs grow with the square of a tree's width, so a tree gives a sample of them."""

    granularity: Literal["step"] = "step"
    """step: any nodes of equal depth, and whole answers."""
    max_per_depth: int | None = Field(250, ge=1)
    """Pairs of one depth (and granularity) of a tree at most; more are sampled. null: all."""
    max_per_tree: int | None = Field(1000, ge=1)
    """Pairs of a tree at most; more are sampled. null: all."""


class Teacher(Endpoint):
    """Who writes structured reasoning."""

    max_tokens: int = Field(1500, ge=1)
    """Tokens of one answer."""
    temperature: float | None = Field(0.7, ge=0)
    """Sampling temperature; null sends none, for models that take none."""
    format: Literal["json", "text"] = "json"
    """json: structured outputs, rendered here, so that the grammar always holds. text: the teacher writes the step
    grammar itself, for servers without structured outputs; what does not parse is refused."""


class CotJudge(Endpoint):
    """Who compares teachers, and tells whether an answer complies with a harmful request."""

    max_tokens: int = Field(512, ge=1)
    """Tokens of one judgement."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature; null sends none."""
    reasks: int = Field(2, ge=0)
    """How often a judgement that can't be read is asked again before the judge counts as failed."""


class GateSection(Section):
    """What an answer of a teacher has to be, beyond the step grammar; what fails goes to quarantine with its rule."""

    min_steps: int = Field(1, ge=1)
    """Reasoning steps at least."""
    max_steps: int = Field(12, ge=1)
    """Reasoning steps at most."""
    min_characters: int = Field(40, ge=0)
    """Characters of all titles, bodies and the final answer at least."""
    max_characters: int = Field(12_000, ge=1)
    """Characters of all titles, bodies and the final answer at most."""
    compliance: bool = True
    """With a judge: refuse answers that comply on safety prompts whose reference answer is unsafe."""

    @model_validator(mode="after")
    def _something_passes(self) -> Self:
        for what in ("steps", "characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least > most:
                raise ValueError(f"min_{what} {least} is more than max_{what} {most}: no answer could pass")
        return self


class TemplatesSection(Section):
    """Files with jinja templates in place of the project's own."""

    safety: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """What a teacher is asked on safety prompts."""
    helpfulness: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """What a teacher is asked on helpfulness prompts."""


class BatchSection(Section):
    """How `--batch` splits requests; the defaults are the limits of OpenAI's Batch API."""

    max_requests: int = Field(50_000, ge=1)
    """Requests of one batch at most."""
    max_bytes: int = Field(200_000_000, ge=1000)
    """Bytes of one batch's file at most."""
    max_enqueued_tokens: int | None = Field(None, ge=1)
    """Prompt tokens of all batches under way at most: the account's batch queue limit for the model. What exceeds it
    waits for the next `--batch`."""


class FromTreesSection(Section):
    """SFT rows out of trees: good answers of the actor's own."""

    min_value: float = 0.8
    """An answer has to be worth at least this."""
    max_tokens: int = Field(2048, ge=1)
    """Rendered prompt plus answer may have at most that many tokens."""
    tokenizer: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder or Hub id of the tokenizer that measures what has no `tokens`; default: the actor's."""
    max_per_prompt: int = Field(8, ge=1)
    """Answers of a prompt at most; more are sampled."""
    task: Task | None = None
    """Task of trees that don't say theirs, such as imported ones."""


class StructuredCotSection(Section):
    """Stage `structured_cot`: reasoning by a teacher, from a file, or out of trees."""

    from_trees: Annotated[FromTreesSection | None, Mark.COUNTS_WHERE_USED] = None
    """Take the rows out of trees ({} for the defaults); `--input trees@X.Y.Z` does so, too."""
    path: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """Rows written by hand: JSONL with prompt, task, steps, output. Without it a teacher is asked."""
    hub: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """A published set of such rows on the Hub: thu-ml/STAIR-SFT."""
    like: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """Read `path` as a file of that set."""
    revision: Annotated[str | None, Mark.COUNTS_AS_INPUT] = None
    """Commit, tag or branch of the published set; default: its head."""
    license: Annotated[str | None, Mark.CANNOT_CHANGE_ROWS] = None
    """Licence of the rows written by hand, or of the published set, as the Hub names it."""
    teacher: Annotated[Teacher, Mark.COUNTS_WHERE_USED] = Teacher()
    """The model that writes the reasoning."""
    teachers: Annotated[dict[str, Teacher], Mark.COUNTS_WHERE_USED] = {}
    """More of them by name, for `--teachers a,b`; a name that is not here is a model at the server of `teacher`."""
    judge: Annotated[CotJudge | None, Mark.COUNTS_WHERE_USED] = None
    """Who keeps the better of two candidates, and finds answers that comply with harmful requests."""
    gate: Annotated[GateSection, Mark.COUNTS_WHERE_USED] = GateSection()
    """What an answer has to be."""
    templates: Annotated[TemplatesSection, Mark.COUNTS_WHERE_USED] = TemplatesSection()
    """Other words for the teacher."""
    batch: Annotated[BatchSection, Mark.CANNOT_CHANGE_ROWS] = BatchSection()
    """How `--batch` splits requests."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_ROWS] = "auto"
    """Prompts in flight at most; auto: one is begun whenever the server could take one more request."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.from_trees is not None:
            raise ValueError("give path or from_trees, not both")
        if self.hub is not None and (self.path is not None or self.from_trees is not None):
            raise ValueError("give hub alone, without path and from_trees")
        return self


class ResponsesSection(Sampling):
    """Stage `responses`: answers of the actor, and test-time search."""

    method: Literal["sample", "best_of_n"] = "sample"
    """sample: one answer. best_of_n: n answers, the PRM's favourite is kept."""
    n: int = Field(1, ge=1)
    """Answers a prompt."""
    prm: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder of the process reward model that scores."""
    max_tokens: int = Field(2048, ge=1)
    """Tokens of one answer."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_ROWS] = "auto"
    """Prompts in flight at most; auto: one is begun whenever the server could take one more request."""

    @model_validator(mode="after")
    def _best_needs_a_judge(self) -> Self:
        if self.method == "best_of_n" and self.prm is None:
            raise ValueError("best_of_n needs a prm")
        return self


class Price(Section):
    """What a model costs, in any one currency."""

    input: float = Field(0, ge=0)
    """Of a million prompt tokens; 0 is free."""
    output: float = Field(0, ge=0)
    """Of a million completion tokens; 0 is free."""
    batch: Share = 0.5
    """Share of it that the Batch API charges."""


class Recipe(Section):
    """All sections of the data stages."""

    seed: int = Field(42, ge=0, le=MOST)
    """Fixes all randomness of ours."""
    prompts: PromptsSection = PromptsSection()
    structured_cot: StructuredCotSection = StructuredCotSection()
    actor: Endpoint = Endpoint()
    trees: TreesSection = TreesSection()
    preference_pairs: PreferencePairsSection = PreferencePairsSection()
    prm_pairs: PrmPairsSection = PrmPairsSection()
    responses: ResponsesSection = ResponsesSection()
    prices: Annotated[dict[str, Price], Mark.CANNOT_CHANGE_ROWS] = {}
    """Price of each model, by its name (of a served folder: the folder's last part). Needed for --max-cost."""


RecipeT = TypeVar("RecipeT", bound=Recipe)
PACKAGED = Path(__file__).parent / "recipes"


def packaged_recipe(path: Path | None) -> Path | None:
    """Return the recipe that comes with the package, where a bare name is given and no such file exists.

    Raises:
        RecipeError: a bare name that is neither.
    """
    if path is None or path.exists() or path.suffix or len(path.parts) != 1:
        return path
    names = sorted(file.stem for file in PACKAGED.glob("*.yaml"))
    if path.name not in names:
        raise RecipeError(
            f"there is no recipe {quote(path.name)}: no such file, and those that come along are {', '.join(names)}"
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
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, model, path, data)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"the recipe {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} can't be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2001-99-99
        raise RecipeError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RecipeError(f"the recipe {path} has to be a mapping of sections, found {quote(data)}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {quote(override)}: write key.key=value, such as trees.iterations=50")
    *path, last = key.split(".")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--set {quote(override)}: the value is not YAML; quote it") from error
    section = data
    for name in path:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {quote(override)}: {name!r} is not a section")
        section = inner
    section[last] = value


def _explain(error: ValidationError, model: type[BaseModel], path: Path | None, data: dict[str, Any]) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    source = f"recipe {path}" if path else "recipe"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        close = nearest(str(first["loc"][-1]), known)
        hint = f"did you mean {close!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{source}: unknown key {where!r}; {hint}"
    value = first["input"] if first["loc"] else data
    return f"{source}: {where or 'top level'}: {first['msg']}, found {quote(value)}"


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
