"""A Ray cluster of two nodes on this machine, of which the second one can be killed."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import Any

SYSTEM = {
    "memory_monitor_refresh_ms": 0,  # it would kill actors for the memory that other programs take
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
"""Room for one replica that takes a whole processor."""


class RayNodes:
    """Starts the head; the second node starts when it is asked for, and again when it was killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = NODE | {"include_dashboard": False, "_system_config": SYSTEM}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._second: Any = None

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def second(self) -> int:
        """Return the process id of the second node's raylet."""
        if self._second is not None and self._raylet(self._second).poll() is not None:
            self._cluster.remove_node(self._second, allow_graceful=False)
            self._cluster.wait_for_nodes()  # until the head knows: it would still give replicas to the dead one
            self._second = None
        if self._second is None:
            self._second = self._cluster.add_node(**NODE)
        return int(self._raylet(self._second).pid)

    def replicas(self) -> dict[int, int]:
        """Return the process ids of all replicas, and the one of their node's raylet."""
        nodes = [node for node in (self._cluster.head_node, self._second) if node is not None]
        raylets = {self._raylet(node).pid for node in nodes}
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
                if parent in raylets and b"ray::ReplicaWorker" in (process / "cmdline").read_bytes():
                    found[int(process.name)] = parent
        return found

    def stop(self) -> None:
        """End all processes of the cluster."""
        self._cluster.shutdown()

    def _raylet(self, node: Any) -> Any:
        return node.all_processes["raylet"][0].process


def wait_until_dead(process: int, seconds: float = 30.0) -> None:
    """Wait for the end of a process that may be somebody else's child."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process)
        try:
            assert select.select([descriptor], [], [], seconds)[0], f"the process {process} lives on"
        finally:
            os.close(descriptor)
