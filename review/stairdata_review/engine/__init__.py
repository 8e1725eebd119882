"""Argilla's search answered from Argilla's own SQL database, in place of Elasticsearch.

This package runs inside the environment of argilla-server, whose libraries differ from ours: it imports the standard
library, argilla_server, sqlalchemy and rq alone, never another part of stairdata. `python FOLDER prepare|serve|worker`
starts Argilla's processes with it.
"""
