"""Judging answers, and checking judges."""
