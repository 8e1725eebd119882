"""The command line: one file a command group; heavy libraries are imported inside the commands."""
