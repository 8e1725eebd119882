"""The proof: the whole method on SmolLM2-135M in one command, with pages of results (docs/proof.md).

    python -m benchmarks.proof --help          from the root of a clone

Its modules import each other by relative imports, since the folder is `benchmarks.proof` on the command line and
`proof` where the folder `benchmarks` is on the path, as in the tests.
"""
