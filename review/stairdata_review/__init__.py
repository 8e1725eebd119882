"""Review of pairs by people in Argilla: a server of our own, pairs pushed to it, verdicts pulled from it."""
