"""Kind `trees`: SI-MCTS by a served model."""
