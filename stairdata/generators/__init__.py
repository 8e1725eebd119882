"""How artifacts are made: one folder a kind of artifact; nothing of the command line."""
