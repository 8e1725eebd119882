"""`python -m stairdata`."""

from stairdata.cli.main import main

main()
