"""stepwise: a prompt, the pieces of an answer, and for each whether it is good so far: for trainers of PRMs.

The form is TRL's "stepwise supervision": https://huggingface.co/docs/trl/dataset_formats. TRL had a trainer for it
(https://github.com/huggingface/trl/tree/v1.13.0/trl/experimental/prm), 1.16 has none; axolotl has one
(https://github.com/axolotl-ai-cloud/axolotl/blob/main/docs/reward_modelling.qmd), which reads the label at the
separator that it puts behind each piece: a line feed, because its check of the configuration drops `step_separator`.
No end token stands there.

A label is V >= threshold, of the node where a piece ends. Trees hold the V of every visited node. Pairs hold those of
the nodes that they compare: what lies between two nodes of known V is one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter

from stairdata.examples.paths import LIGHT_NODES, TREES_AT_ONCE, paths_to_leaves
from stairdata.examples.reading import LabelledSteps
from stairdata.interop.trainers import settings
from stairdata.interop.trainers.target import Data, Form, Target, UnsayableError, as_yaml, rendered
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact, iterate_frames
from stairdata_schemas.grammar import STEP_CLOSE
from stairdata_schemas.rendering import Tokenizer

SEPARATOR = "\n"
THRESHOLD = 0.0
"""Every safe answer has a reward above it, and no unsafe one."""
_PAIRS_AT_ONCE = 1024
_PAIR_COLUMNS = ["tree_id", "prompt", "chosen", "chosen_value", "rejected", "rejected_value"]


def stepwise_row(example: LabelledSteps) -> Row:
    """Leave out the line feed that the trainer's separator brings: the pieces with separators are the answer again."""
    first, *others = example.pieces
    pieces = [first, *(piece.removeprefix(SEPARATOR) for piece in others)]
    return {"prompt": example.prompt, "completions": pieces, "labels": example.labels}


def _rendered_row(tokenizer: Tokenizer, example: LabelledSteps) -> Row:
    said = rendered(tokenizer, example.prompt, *example.pieces)
    if said.reader is not None:
        raise UnsayableError
    # the trainers put a BOS token in front themselves
    prompt = said.text.removeprefix(getattr(tokenizer, "bos_token", None) or "")
    return stepwise_row(example._replace(prompt=prompt))


def read_steps(artifact: Artifact, threshold: float) -> Iterator[LabelledSteps]:
    """Yield the longest answers of each tree; a piece that several share is in each of them.

    Args:
        artifact: of kind trees, preference_pairs or prm_pairs, in which the pairs of a tree follow each other.
        threshold: of V, from which on a label is true.
    """
    paths = _paths_of_trees(artifact) if artifact.kind == "trees" else _paths_of_pairs(artifact)
    for prompt, path in paths:
        yield LabelledSteps(prompt, [text for text, _ in path], [value >= threshold for _, value in path])


Labelled = list[tuple[str, float]]
"""Pieces of an answer, each with the V of the node where it ends."""


def _paths_of_trees(artifact: Artifact) -> Iterator[tuple[str, Labelled]]:
    for path in artifact.data_files:
        for frame in iterate_frames(path, TREES_AT_ONCE):
            for prompt, nodes in frame.select("prompt", LIGHT_NODES).iter_rows():
                yield from ((prompt, found) for found in _paths_of_tree(nodes))


def _paths_of_tree(nodes: list[Json]) -> Iterator[Labelled]:
    visited = (node for node in nodes if node["visits"] > 0)
    for path in paths_to_leaves(visited):
        yield [(node["step"], node["value_sum"] / node["visits"]) for node in path]


def _paths_of_pairs(artifact: Artifact) -> Iterator[tuple[str, Labelled]]:
    frames = (frame for path in artifact.data_files for frame in iterate_frames(path, _PAIRS_AT_ONCE))
    rows = (row for frame in frames for row in frame.select(_PAIR_COLUMNS).iter_rows())
    for _, pairs in groupby(rows, key=itemgetter(0)):
        values: dict[str, float] = {}
        prompt = ""
        for _, prompt, chosen, chosen_value, rejected, rejected_value in pairs:  # noqa: B007 - of the last pair
            values |= {chosen: chosen_value, rejected: rejected_value}
        for path in paths_between(values):
            yield prompt, path


def paths_between(values: dict[str, float]) -> Iterator[Labelled]:
    """Yield the paths to the texts that none of the others goes on with.

    Args:
        values: of texts from an answer's start, all of one tree, their V.
    """
    before: list[str] = []
    for text, following in pairwise([*sorted(values), ""]):  # what goes on with a text follows it
        while before and not _goes_on(before[-1], text):
            before.pop()
        before.append(text)
        if not _goes_on(text, following):
            starts = [0, *map(len, before)]
            yield [(found[start:], values[found]) for start, found in zip(starts, before, strict=False)]


def _goes_on(text: str, other: str) -> bool:
    """Tell whether the other is an answer below the same node: only a closed step is followed by another."""
    return text.endswith(STEP_CLOSE) and other.startswith(text)


def _files(data: Data) -> dict[str, str]:
    source = {"path": data.file, "ds_type": data.format, "split": "train", "type": "stepwise_supervised"}
    values = {
        "base_model": settings.MODEL,
        "process_reward_model": True,
        "model_type": "AutoModelForTokenClassification",
        "num_labels": 2,
        "datasets": [source],
        "sequence_len": data.limit,
        "learning_rate": settings.RATES["reward"],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": settings.ROWS_OF_A_STEP,
        "num_epochs": 1,
        "output_dir": settings.OUTPUT,
    }
    return {"axolotl.yaml": as_yaml(values)}


_ENDS = "Labels belong to the line feed that the trainer puts behind each piece; no end token is in the data."
_PLAIN = Form(
    "prompt, completions, labels; the prompt as plain text, without a chat template",
    stepwise_row,
    _files,
    "axolotl train axolotl.yaml",
    _ENDS,
    ends_every_text=False,
    read=read_steps,
)


def _in_template(tokenizer: Tokenizer) -> Form:
    columns = "prompt, completions, labels; the prompt in the model's chat template"
    row: Callable[[LabelledSteps], Row] = partial(_rendered_row, tokenizer)
    return Form(columns, row, _files, _PLAIN.command, _ENDS, ends_every_text=False, read=read_steps)


_KINDS = ("trees", "preference_pairs", "prm_pairs")
STEPWISE = Target(
    "stepwise",
    "stepwise supervision",
    "https://huggingface.co/docs/trl/dataset_formats",
    dict.fromkeys(_KINDS, _PLAIN),
    dict.fromkeys(_KINDS, _in_template),
)
