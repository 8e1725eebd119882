"""Judges of answers: rules, rubrics that a model answers, and guard models."""
