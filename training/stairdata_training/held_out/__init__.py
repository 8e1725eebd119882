"""Measures of a trained model on pairs that it has not seen, with intervals over prompts."""

NOT_BETTER = "not better than length"
"""The mark of a reward model whose interval holds, or lies below, the accuracy of the length rule."""
