"""Review without Argilla: items out as a table, answers in from the tables that came back."""
