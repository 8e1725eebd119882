"""stairdata: STAIR's data as versioned datasets. The command line is the public surface."""
