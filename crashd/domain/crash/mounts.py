"""Where the directories that a process has mounted lie on the host, from the mountinfo of both
(proc_pid_mountinfo(5)). Pure; a user chooses the mounts of their own namespaces.
"""

import functools
import re
from typing import Final, NamedTuple

BINDS_MAX: Final = 64
_LINES_MAX: Final = 4096
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Bind(NamedTuple):
    """A directory of the host that the process had at another path."""

    point: bytes
    """The path in the process's namespace, without a slash at its end: empty for its root."""
    source: bytes
    """The host's path."""


class _Mount(NamedTuple):
    device: bytes
    root: bytes
    """The directory of its file system that is mounted."""
    point: bytes


@functools.lru_cache(4)  # in a storm, one process after the other has the same mounts
def find_binds(mountinfo: bytes, host: bytes) -> tuple[Bind, ...]:
    """Return the mounts of a process that the host has, too, but elsewhere; the deepest first,
    BINDS_MAX at most.
    """
    by_device: dict[bytes, list[_Mount]] = {}
    for mount in _parse(host):
        by_device.setdefault(mount.device, []).append(mount)
    found: dict[bytes, Bind] = {}
    for mount in _parse(mountinfo):
        point = mount.point.rstrip(b"/")
        found.pop(point, None)  # another one is mounted over it
        sources = _sources(mount, by_device.get(mount.device, []))
        if sources and (point or b"/") not in sources:
            found[point] = Bind(point, sources[0])
    return tuple(sorted(found.values(), key=lambda bind: -len(bind.point))[:BINDS_MAX])


def _sources(mount: _Mount, hosts: list[_Mount]) -> list[bytes]:
    """Return the host's paths of what is mounted: first below the mount that shows least of the
    file system.
    """
    found = []
    for host in hosts:
        above = host.root.rstrip(b"/")
        rest = mount.root.rstrip(b"/")
        if rest == above or rest.startswith(above + b"/"):
            found.append((len(above), (host.point.rstrip(b"/") + rest[len(above) :]) or b"/"))
    return [path for _, path in sorted(found, key=lambda row: -row[0])]


def _parse(mountinfo: bytes) -> list[_Mount]:
    found = []
    for line in mountinfo.split(b"\n", _LINES_MAX)[:_LINES_MAX]:
        fields = line.split(b" ", 6)
        if len(fields) > 6 and fields[3].startswith(b"/") and fields[4].startswith(b"/"):
            found.append(_Mount(fields[2], _plain(fields[3]), _plain(fields[4])))
    return found


def _plain(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
