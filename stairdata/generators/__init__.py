"""One module per artifact kind: what goes in, what comes out, nothing of the command line."""
