"""All stages of STAIR in order, in K rounds, resumable: `stairdata run` and `stairdata quickstart`.

`run.py` is the order of the stages, `steps.py` runs one of them, `measures.py` says what came of it.
"""
