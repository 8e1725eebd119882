"""`stairdata build KIND`: one command a kind."""
