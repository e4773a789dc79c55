"""The names of a pod, from the names that the kubelet gives to log files. Pure.

/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log and /var/log/pods/NAMESPACE_POD_UID/. The kubelet
makes them as root, of names that the API server has checked; they are checked again here.
"""

import re
from collections.abc import Iterable

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
"""RFC 1123, as for namespaces and containers."""
_SUBDOMAIN = rf"(?=.{{1,253}}(?:_|\Z)){_LABEL}(?:\.{_LABEL})*"
"""As for pods and nodes."""
_CONTAINER_LOG = re.compile(rf"({_SUBDOMAIN})_({_LABEL})_({_LABEL})-([0-9a-f]{{64}})\.log")
_POD_DIRECTORY = re.compile(rf"({_LABEL})_({_SUBDOMAIN})_([0-9a-f-]{{32,36}})")
_NODE = re.compile(_SUBDOMAIN)


def find_container(names: Iterable[str], container_id: str) -> dict[str, str] | None:
    """Find the namespace, pod and container of a container's id in /var/log/containers."""
    for name in names:
        match = _CONTAINER_LOG.fullmatch(name) if container_id in name else None
        if match and match[4] == container_id:
            return {"namespace": match[2], "name": match[1], "container": match[3]}
    return None


def find_pod(names: Iterable[str], pod_uid: str) -> dict[str, str] | None:
    """Find the namespace and name of a pod's uid in /var/log/pods."""
    for name in names:
        match = _POD_DIRECTORY.fullmatch(name) if name.endswith(pod_uid) else None
        if match and match[3] == pod_uid:
            return {"namespace": match[1], "name": match[2]}
    return None


def node_name(value: str) -> str | None:
    """Return the name of a node if it is one."""
    return value if _NODE.fullmatch(value) else None
