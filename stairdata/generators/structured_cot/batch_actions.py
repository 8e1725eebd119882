"""What `--batch` can be told to do; a module that imports nothing, for the command line."""

BATCH_ACTIONS = ("submit", "status", "collect", "cancel")
