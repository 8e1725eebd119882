"""The order of rows in training: steps of rows of similar length, the same however a step is split."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

_STEPS_SORTED_TOGETHER = 50


def step_order(lengths: Sequence[int], rows_per_step: int, seed: int, epoch: int) -> list[int]:
    """Return the numbers of the rows in the order of an epoch, each once.

    Rows of similar length share a step, so that little is padded, and stand in it from short to long, so that the same
    holds for the forward passes into which it is split. Steps come in random order, a short one at the end.
    Transformers' own grouping draws from the global random state, so a resumed run would see another order.

    Args:
        lengths: of the rows, in tokens.
        rows_per_step: rows of an optimizer step, all processes and forward passes together.
        seed: decides the order, together with the epoch.
        epoch: from 0.
    """
    generator = random.Random(f"{seed}/{epoch}")  # noqa: S311
    order = generator.sample(range(len(lengths)), len(lengths))
    group = rows_per_step * _STEPS_SORTED_TOGETHER
    order = [
        index
        for start in range(0, len(order), group)
        for index in sorted(order[start : start + group], key=lengths.__getitem__)
    ]
    steps = [order[start : start + rows_per_step] for start in range(0, len(order), rows_per_step)]
    short = steps.pop() if len(steps[-1]) < rows_per_step else []
    generator.shuffle(steps)
    return [index for step in [*steps, short] for index in step]


def rows_read(rows: int, rows_per_step: int, rows_per_pass: int) -> int:
    """Return how many rows an epoch reads, those that fill its last step included.

    The last step is filled up with the epoch's first rows. Left short it would be split into other means by other
    numbers of forward passes or processes, and would weigh its few rows as much as a whole step. Rows that are fewer
    than a step holds only fill their last forward pass: to read each of them many times would change little.

    Args:
        rows: there are.
        rows_per_step: of an optimizer step.
        rows_per_pass: of a forward pass, all processes together.
    """
    unit = rows_per_step if rows > rows_per_step else rows_per_pass
    return -(-rows // unit) * unit


class StepSampler(Sampler[int]):
    """Rows that are stored in the order of epoch 0, in whole steps.

    Args:
        lengths: of the rows, in tokens.
        rows_per_step: of an optimizer step.
        rows_per_pass: of a forward pass, all processes together.
        seed: decides the order.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, rows_per_pass: int, seed: int) -> None:
        self.lengths, self.rows_per_step, self.rows_per_pass, self.seed = lengths, rows_per_step, rows_per_pass, seed
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self) // self.rows_per_step)

    def __len__(self) -> int:
        return rows_read(len(self.lengths), self.rows_per_step, self.rows_per_pass)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rows = len(self.lengths)
        order = step_order(self.lengths, self.rows_per_step, self.seed, self.epoch) if self.epoch else range(rows)
        return (order[index % rows] for index in range(len(self)))
