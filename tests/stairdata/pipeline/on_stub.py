"""The real command line, in which the stub model stands for vLLM's program.

    python -m tests.stairdata.pipeline.on_stub run recipe.yaml --folder run

Servers are started and ended as they are with vLLM; only the command that is started is another one.
"""

from __future__ import annotations

import sys

from stairdata.cli import main
from stairdata.llm import vllm_server
from stairdata.llm.vllm_server import ServerOptions


def stub_command(options: ServerOptions, port: int) -> list[str]:
    return [sys.executable, "-m", "tests.servers.stub_vllm", str(port), options.served_name, options.model]


if __name__ == "__main__":
    vllm_server.vllm_command = stub_command
    main.main()
