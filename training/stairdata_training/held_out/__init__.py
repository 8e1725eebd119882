"""Measures of a trained model on pairs that it has not seen, with intervals over prompts."""
