"""Artifacts as pictures, pages and differences."""
