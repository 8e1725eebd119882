"""Stage `prompts`: where prompts come from, and which are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stairdata.recipe.endpoint import Endpoint
from stairdata.recipe.section import Concurrency, Section, Task
from stairdata_schemas.fingerprints import Mark

PromptColumn = Literal["prompt", "task", "source", "category", "reference_answer", "reference_is_safe"]


class PromptSource(Section):
    """One source of prompts: local files or a Hub dataset."""

    path: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """A .json, .jsonl, .ndjson, .csv, .tsv or .parquet file (all but the last also as .gz, .xz or .zst), or a folder of
    such files, relative to the working folder."""
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
    """Our column name to the source's, where they differ: {prompt: question, task: type}. Dots reach into nested
    values: {prompt: data.question}, and into a list of turns by number or to the text of the first user turn:
    {prompt: messages.first_user, reference_answer: messages.1.content}."""
    turns_before: Annotated[Literal["refuse", "drop"], Mark.COUNTS_UNLESS_DEFAULT] = "refuse"
    """What happens to a row in which `first_user` is not the first turn, since a system turn or a greeting stands
    before it: refuse it, or take the user turn and drop the turns before it."""
    where: dict[str, bool | int | float | str | list[bool | int | float | str]] = {}
    """Take only rows whose columns have these values (or one of them): {language: English}. Case does not matter."""
    task: Task | None = None
    """Task of every row, for sources that have no such column."""
    name: str | None = None
    """Value of the `source` column; default: the source's own column, else the file's name or the Hub id."""
    license: Annotated[str | None, Mark.CANNOT_CHANGE_RESULT] = None
    """The source's licence as the Hub names it, such as cc-by-nc-4.0; default: what a Hub dataset's card says."""
    near_duplicates: bool | None = None
    """false: keep prompts that resemble each other. Default true, except known sources of many prompts in one form."""
    skip: int = Field(0, ge=0)
    """Skip this many rows at the start."""
    count: int | None = Field(None, ge=1)
    """Take this many prompts, sampled with the recipe's seed after all filters; default: all."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path or hub")
        return self


class NearDuplicatesSection(Section):
    """How alike two prompts may be."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Refuse a prompt if the Jaccard index of its character n-grams with an earlier one is at least this."""
    ngram: int = Field(5, ge=1)
    """Characters in an n-gram, ignoring case and punctuation."""
    permutations: int = Field(128, ge=16, le=1024)
    """Hash functions of the MinHash that finds the candidates; their index is then computed exactly."""


class ContaminationSection(Section):
    """What counts as an overlap with evaluation prompts, besides the same words in the same order."""

    ngram: int = Field(13, ge=1)
    """This many words in a row in common; shorter evaluation prompts count as a whole."""
    min_words: int = Field(5, ge=1)
    """An evaluation prompt with fewer words counts only if the whole prompt is the same."""
    threshold: float = Field(0.8, gt=0, le=1)
    """A Jaccard index of character 5-grams of at least this counts as a near duplicate."""


class TaskJudge(Endpoint):
    """The model that says which task a prompt is."""

    max_tokens: int = Field(64, ge=1)
    """Tokens of one answer; a model that reasons first needs more."""
    temperature: float = Field(0, ge=0)
    """Sampling temperature."""
    reasks: int = Field(2, ge=0)
    """How often the model is asked again after an unreadable answer before the row is refused."""


class TwinTeacher(Endpoint):
    """The model that writes harmless twins of prompts."""

    max_tokens: int = Field(2048, ge=1)
    """Tokens of one answer; a twin is about as long as its prompt, and a model that reasons first needs more."""
    temperature: float | None = Field(0.7, ge=0)
    """Sampling temperature; null sends none, for models that don't accept one."""
    reasks: int = Field(2, ge=0)
    """How often the teacher is asked again after an answer that is no twin before the twin is refused."""


class TwinsSection(Section):
    """Harmless prompts of the form of unsafe ones, for training against over-refusal."""

    teacher: TwinTeacher = TwinTeacher()
    """The model that writes them."""
    template: Annotated[Path | None, Mark.COUNTS_AS_INPUT] = None
    """Your own template of what the teacher is asked; it may use prompt, task and category."""
    tasks: list[Task] = Field(["safety"], min_length=1)
    """Prompts of these tasks get a twin."""
    count: int | None = Field(None, ge=1)
    """So many prompts get one, sampled with the recipe's seed; default: all of these tasks."""
    max_similarity: float = Field(0.8, gt=0, le=1)
    """Refuse a twin if the Jaccard index of its character 5-grams with its prompt is at least this."""


class PromptsSection(Section):
    """Stage `prompts`: where prompts come from, and which are left out."""

    sources: Annotated[list[PromptSource], Mark.COUNTS_AS_INPUT] = []
    """Where prompts come from, in order; of duplicates the first is kept, the others go to quarantine."""
    near_duplicates: NearDuplicatesSection | None = None
    """Refuse prompts that nearly repeat an earlier row ({} for the defaults); off by default, since prompts in
    one form, such as jailbreaks, are alike on purpose."""
    decontaminate: Annotated[list[str | PromptSource], Mark.COUNTS_AS_INPUT] = []
    """Evaluation prompts that must not be in the data: files, prompts artifacts, or sources with `columns` and
    `where`."""
    contamination: ContaminationSection = ContaminationSection()
    """What counts as an overlap with them."""
    languages: list[str] = []
    """Keep only prompts in these languages, as ISO 639 codes: [en, zh]; empty keeps all."""
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
    twins: Annotated[TwinsSection | None, Mark.COUNTS_WHERE_USED] = None
    """For each unsafe prompt a harmless one of the same form, written by a teacher, of task helpfulness."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_RESULT] = "auto"
    """Prompts that a model is asked about at a time; auto: one is started whenever the server could take one more
    request."""

    @model_validator(mode="after")
    def _all_evaluation_prompts(self) -> Self:
        for source in self.decontaminate:
            given = [] if isinstance(source, str) else source.model_fields_set & {"skip", "count"}
            if given:
                raise ValueError(
                    f"all rows of a set in decontaminate count, so {', '.join(sorted(given))} can't choose among them; "
                    "leave it out, choose them by `where`, or write the rows that count to a file"
                )
        return self
