"""Exports to other people's trainers, and imports of sets in their forms."""
