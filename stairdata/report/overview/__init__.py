"""`stairdata report`: a run or some artifacts with their ancestors, on one page.

`sources` finds what is there, one module a topic turns it into sections, and `writing` puts them on the page.
"""
