"""Which paths fit into max_tokens: by the trees' own `tokens`, by bytes, and only then by a tokenizer.

The length is what training counts: the ids of rendered prompt plus path in one piece, and end-of-turn after a terminal
step. A byte-level tokenizer makes at most one token of a byte, so what has at most max_tokens UTF-8 bytes, the
end-of-turn counted as one, fits. Where a tree says nothing about its rendered prompt, the prompt and 116 bytes for the
chat template stand for it: the published template has 116, and the default templates of other models come to fewer
tokens.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stairdata.generators.pairs.forest import Forest, Indices, Mask, levels, path_sums, path_texts
from stairdata.recipe import Recipe
from stairdata_schemas import rendering
from stairdata_schemas.errors import BuildError
from stairdata_schemas.grammar import TAGS
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.rendering import RenderedPrompt

TEMPLATE_BYTES = 116
STEPS_AT_ONCE = 4096
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")


def tokenizer_of(named: str | None, recipe: Recipe) -> str | None:
    """Return the tokenizer a section names, else the actor's."""
    return recipe.tokenizer_or_default(named)


def tokenizer_identity(tokenizer: str) -> ModelIdentity:
    """Return which tokenizer may decide about rows; a folder counts by its files, which need not be there yet."""
    folder = Path(tokenizer)
    if not folder.is_dir():
        return ModelIdentity(role="tokenizer", name=tokenizer)
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return ModelIdentity(role="tokenizer", name=folder.name, tokenizer_hash=digest.hexdigest()[:16])


class LengthLimit:
    """Measures paths; loads the tokenizer when the first path needs it."""

    def __init__(self, max_tokens: int, tokenizer: str | None, option: str) -> None:
        self._max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._option = option
        self._loaded: Any = None

    def fits(self, forest: Forest, candidates: Indices) -> Mask:
        """Return which of the candidate nodes have at most max_tokens tokens: rendered prompt, path, end-of-turn.

        Raises:
            BuildError: only a tokenizer can tell, and none is named.
        """
        tokens = forest.nodes["tokens"]
        ends = forest.nodes["is_terminal"].to_numpy()
        most = path_sums(forest, tokens.fill_null(_bytes(forest)).to_numpy()) + ends
        least = path_sums(forest, tokens.fill_null(0).to_numpy()) + ends
        is_open = (most > self._max_tokens) & (least <= self._max_tokens)
        undecided = candidates[is_open[candidates]]
        if len(undecided):
            measured = self._measure(forest, undecided)
            most = path_sums(forest, tokens.fill_null(measured).fill_null(_bytes(forest)).to_numpy()) + ends
        fits: Mask = most <= self._max_tokens
        return fits[candidates]

    def _measure(self, forest: Forest, undecided: Indices) -> pl.Series:
        """Count the tokens of the steps that have none on the paths to some nodes; null elsewhere."""
        if self._tokenizer is None:
            raise BuildError(self._advice(len(undecided)))
        if self._loaded is None:
            self._loaded = rendering.load_tokenizer(self._tokenizer)
        on_path = np.zeros(len(forest.nodes), dtype=bool)
        on_path[undecided] = True
        for rows in reversed(list(levels(forest))):
            on_path[forest.parents[rows[on_path[rows]]]] = True
        rows = np.flatnonzero(on_path & forest.nodes["tokens"].is_null().to_numpy())
        counts = np.full(len(forest.nodes), -1, dtype=np.int64)
        for start in range(0, len(rows), STEPS_AT_ONCE):
            piece = rows[start : start + STEPS_AT_ONCE]
            counts[piece] = self._counts(forest, piece)
        return pl.Series(counts).replace(-1, None)

    def _counts(self, forest: Forest, rows: Indices) -> Indices:
        """Return by how many tokens some nodes make their paths longer; for a root those of its tree's prompt."""
        counts = np.zeros(len(rows), dtype=np.int64)
        alone = _parted_from_parents(forest, rows) & rendering.reads_parts_alone(self._loaded)
        if alone.any():  # a batch takes a fraction of the time
            steps = forest.nodes["step"].gather(rows[alone]).to_list()
            counts[alone] = [len(ids) for ids in self._loaded(steps, add_special_tokens=False)["input_ids"]]
        others = rows[~alone]
        paths = path_texts(forest, forest.parents[others]).to_list() if len(others) else []
        prompts: dict[int, RenderedPrompt] = {}
        found = []
        for node, path in zip(forest.nodes[others].iter_rows(named=True), paths, strict=True):
            tree = node["tree"]
            if tree not in prompts:
                prompts[tree] = rendering.render_prompt(self._loaded, forest.trees["prompt"][tree])
            before = prompts[tree]
            found.append(before.plus(path).count_next(node["step"], self._count) if node["depth"] else len(before.ids))
        counts[~alone] = found
        return counts

    def _count(self, text: str) -> int:
        return len(rendering.encode(self._loaded, text))

    def _advice(self, count: int) -> str:
        return (
            f"{count} nodes that would be used have no `tokens`, and their prompt and path have more UTF-8 bytes than "
            f"max_tokens ({self._max_tokens}), so only a tokenizer can tell whether they fit; name the actor's with "
            f"`--set {self._option}=FOLDER` (or a Hub id)"
        )


def _parted_from_parents(forest: Forest, rows: Indices) -> Mask:
    """Return which steps stand behind a tag or begin with one."""
    steps, before = forest.nodes["step"].gather(rows), forest.nodes["step"].gather(forest.parents[rows])
    parted = (forest.nodes["depth"].gather(rows) > 0).to_numpy()
    begins, ends = (
        np.any([function(tag).to_numpy() for tag in TAGS], axis=0)
        for function in (steps.str.starts_with, before.str.ends_with)
    )
    found: Mask = parted & (begins | ends)
    return found


def _bytes(forest: Forest) -> pl.Series:
    """Return the UTF-8 bytes of each node's step; of the prompt and a chat template at the root."""
    own = forest.nodes["step"].str.len_bytes().cast(pl.Int64)
    prompts = forest.trees["prompt"].str.len_bytes().cast(pl.Int64) + TEMPLATE_BYTES
    return own.zip_with(forest.nodes["depth"] > 0, prompts.gather(forest.nodes["tree"]))
