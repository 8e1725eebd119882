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


class StepSampler(Sampler[int]):
    """Rows that are stored in the order of epoch 0, in whole steps.

    The last step of an epoch is filled up with the epoch's first rows. Left short it would be split into other means
    by other numbers of forward passes or processes, and would weigh its few rows as much as a whole step.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self.lengths, self.rows_per_step, self.seed, self.epoch = lengths, rows_per_step, seed, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.rows_per_step) * self.rows_per_step

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rows = len(self.lengths)
        order = step_order(self.lengths, self.rows_per_step, self.seed, self.epoch) if self.epoch else range(rows)
        return (order[index % rows] for index in range(len(self)))
