"""Requests that are answered within a day: the queue of a build's batches, and what is kept of them on disk."""
