"""A review round in Argilla: the server's API, what reviewers see there, push, status and pull."""
