"""Reads the names of a pod from the kubelet's directories of logs; see domain/crash/podnames.py."""

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from crashd.domain.crash.podnames import find_container, find_pod, node_name

LOGS = Path("/var/log")
NODE_VARIABLE = "CRASHD_NODE_NAME"
NAMES_MAX = 10_000
"""Entries of a directory that are looked at; a node runs some hundred containers."""


def read_pod(
    container_id: str | None, pod_uid: str, environ: Mapping[str, str], logs: Path = LOGS
) -> dict[str, str] | None:
    """Return `{namespace, name, container, node}` as far as known; None if nothing is."""
    found = None
    if container_id is not None:
        found = find_container(_names(logs / "containers"), container_id)
    if found is None:
        found = find_pod(_names(logs / "pods"), pod_uid)
    node = node_name(environ.get(NODE_VARIABLE, ""))
    if found is None or node is None:
        return found
    return {**found, "node": node}


def _names(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in islice(entries, NAMES_MAX)]
    except OSError:
        return []
