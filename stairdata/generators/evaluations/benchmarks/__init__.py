"""Benchmarks: which prompts they have, and what is known of each."""

from stairdata.generators.evaluations.benchmarks.benchmark import BenchmarkPrompt, PinnedBenchmark
from stairdata.generators.evaluations.benchmarks.loading import load_benchmarks, pin_benchmarks

__all__ = ["BenchmarkPrompt", "PinnedBenchmark", "load_benchmarks", "pin_benchmarks"]
