"""The stub model in the place of vLLM's program: `python -m tests.servers.stub_vllm PORT NAME FOLDER`.

It wants the key that a managed server hands over, and reads token ids with the tokenizer of the folder that it serves.
"""

from __future__ import annotations

import os
import socket
import sys

from stairdata.llm.in_server.guard import KEY_VARIABLE
from tests.servers.stub_llm import STATE, serve

DELAY_VARIABLE = "STAIRDATA_TESTS_STUB_DELAY"
"""Seconds that every answer takes, so that a client can be ended in between."""


def main() -> None:
    port, name, folder = sys.argv[1:]
    STATE.options.model, STATE.options.tokenizer = name, folder
    STATE.options.key = os.environ[KEY_VARIABLE]
    STATE.options.delay = float(os.environ.get(DELAY_VARIABLE, "0"))
    serve(socket.create_server(("127.0.0.1", int(port)), backlog=256))


if __name__ == "__main__":
    main()
