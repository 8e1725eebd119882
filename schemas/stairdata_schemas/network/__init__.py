"""Bounds of time and size for what comes over a network from somebody else."""
