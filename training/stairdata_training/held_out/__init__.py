"""Measures of a trained model on pairs that it has not seen, with intervals over prompts."""

NOT_BETTER = "not better than length"
"""The mark of a reward model whose interval holds, or lies below, the accuracy of the length rule."""
WRONG_WAY = "ranks pairs of {task} prompts the wrong way round"
"""The mark of a model whose whole interval on a task's pairs lies below one half."""
