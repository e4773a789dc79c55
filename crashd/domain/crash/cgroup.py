"""Parses /proc/PID/cgroup: the unit, slice, session, container and pod of a process.

Units follow systemd's own rules (src/basic/cgroup-util.c: cg_path_get_unit() and its neighbours),
containers the names that the runtimes give to their cgroups. The owner of a delegated cgroup
(Delegate=, every user manager) can create any name below it. is_in_roots_container() accounts for
that; nothing else here proves anything.
"""

import re
from dataclasses import dataclass
from typing import Final

PATH_MAX: Final = 4096  # include/uapi/linux/limits.h
LINES_MAX: Final = 64
"""A process is in one cgroup of each hierarchy, and there are fewer controllers than this."""

ROOT_SLICE: Final = "-.slice"
UNIT_NAME_MAX: Final = 255

_UNIT = re.compile(
    r"(?!@)[A-Za-z0-9:_.\\@-]+(?<!@)"  # not a template (foo@.service): nothing runs in it
    r"\.(?:service|socket|target|device|mount|automount|swap|timer|path|slice|scope)"
)
_SESSION = re.compile(r"session-([A-Za-z0-9]+)\.scope")
_USER_MANAGER = re.compile(r"user@[0-9]{1,10}\.service|capsule@[^/@]+\.service")

_ID = "[0-9a-f]{64}"
_RUNTIMES: Final = {
    "docker": "docker",
    "libpod": "podman",
    "libpod-payload": "podman",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
}
# `docker-ID.scope` with systemd as cgroup driver, `libpod-ID` without, and
# `SLICE:cri-containerd:ID` with mixed-up drivers. Conmon's own cgroup (libpod-conmon-ID) does not
# match.
_CONTAINER = re.compile(rf"(?:[^:]{{1,255}}:)?({'|'.join(_RUNTIMES)})[-:]({_ID})(?:\.scope)?")
_BARE_ID = re.compile(_ID)
_UUID = "[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32}"  # static pod: no dashes
_POD = re.compile(rf"pod({_UUID})")
_POD_SLICE = re.compile(rf"(?:[^/]*-)?kubepods-(?:[a-z]+-)?pod({_UUID})\.slice")
_MACHINE = re.compile(r"machine-(.+)\.scope|systemd-nspawn@(.+)\.service")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Placement:
    """What a cgroup path says; None for what it does not say."""

    cgroup: str | None = None
    """The path in the hierarchy that systemd uses."""
    unit: str | None = None
    user_unit: str | None = None
    """Unit within the user's own manager, if `unit` is that manager."""
    slice: str | None = None
    session: str | None = None
    """Id of the logind session."""
    container_id: str | None = None
    """64 hex digits, or the name of an LXC or nspawn container; of nested ones the innermost."""
    container_runtime: str | None = None
    pod_uid: str | None = None


def parse_cgroup(raw: bytes) -> Placement:
    """Parse /proc/PID/cgroup (cgroups(7)): version 2, version 1 or both mixed; never raises."""
    path = _path(raw)
    if path is None:
        return Placement()
    parts = [part for part in path.split("/") if part]
    above, rest = _split_slices(parts)
    unit = _unit(rest)
    # systemd reports `-.slice` for everything outside of slices; do so only for what systemd
    # placed.
    outer = above[-1] if above else ROOT_SLICE if unit else None
    user_unit = session = None
    if rest:
        found = _SESSION.fullmatch(rest[0])
        session = found.group(1) if found else None
        if found or _USER_MANAGER.fullmatch(rest[0]):
            user_unit = _unit(_split_slices(rest[1:])[1])
    container_id, runtime = _container(parts)
    return Placement(
        cgroup=path,
        unit=unit,
        user_unit=user_unit,
        slice=outer,
        session=session,
        container_id=container_id,
        container_runtime=runtime,
        pod_uid=_pod_uid(parts),
    )


def _path(raw: bytes) -> str | None:
    """Choose the path: of systemd's hierarchy, version 2, any other; prefer one other than `/`."""
    paths: list[tuple[bool, int, str]] = []
    for line in raw.split(b"\n", LINES_MAX)[:LINES_MAX]:
        hierarchy, _, rest = line.partition(b":")
        controllers, _, value = rest.partition(b":")
        if not hierarchy.isdigit() or not value.startswith(b"/"):
            continue
        value = value.removesuffix(b" (deleted)")[:PATH_MAX]
        rank = 0 if controllers == b"name=systemd" else 1 if not controllers else 2
        paths.append((value == b"/", rank, value.decode("utf-8", "backslashreplace")))
    # min() returns the first of equals, so the kernel's order decides between controllers.
    return min(paths, key=lambda p: p[:2])[2] if paths else None


def _unescape(part: str) -> str:
    """Undo cg_escape(), which puts `_` before a name that could be a file of the kernel's."""
    return part.removeprefix("_")


def _is_unit(name: str) -> bool:
    return len(name) <= UNIT_NAME_MAX and _UNIT.fullmatch(name) is not None


def _split_slices(parts: list[str]) -> tuple[list[str], list[str]]:
    """Split a path into its leading slices and the rest, both unescaped."""
    names = [_unescape(part) for part in parts]
    count = 0
    while count < len(names) and _is_slice(names[count]):
        count += 1
    return names[:count], names[count:]


def _is_slice(name: str) -> bool:
    return name.endswith(".slice") and "@" not in name and _is_unit(name)


def is_in_roots_container(path: str | None) -> bool:
    """Return whether a cgroup belongs to a container that root's runtime created.

    Below a service or a user's slice, the owner of the delegated cgroup chooses the names.
    """
    parts = [_unescape(part) for part in (path or "").split("/") if part]
    if not parts or parts[0] == "user.slice" or any(part.endswith(".service") for part in parts):
        return False
    return _container(parts)[0] is not None


def _unit(rest: list[str]) -> str | None:
    return rest[0] if rest and _is_unit(rest[0]) and not rest[0].endswith(".slice") else None


def _container(parts: list[str]) -> tuple[str | None, str | None]:
    """Return id and runtime of the innermost container."""
    for at in range(len(parts) - 1, -1, -1):
        part, above = parts[at], parts[at - 1] if at else ""
        below = parts[at + 1] if at + 1 < len(parts) else ""
        if found := _CONTAINER.fullmatch(part):
            return found.group(2), _RUNTIMES[found.group(1)]
        if _BARE_ID.fullmatch(part):
            if above == "docker":
                return part, "docker"
            if _POD.fullmatch(above):
                return part, "containerd"
        if name := _named_container(part, above, below):
            return name
    return None, None


def _named_container(part: str, above: str, below: str) -> tuple[str, str] | None:
    if found := _MACHINE.fullmatch(part):
        # libvirt names the scopes of virtual machines in the same way; the supervisor is nspawn
        # itself.
        escaped = found[1] or found[2]
        name = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), escaped)
        if _NAME.fullmatch(name) and not name.startswith("qemu-") and below != "supervisor":
            return name, "systemd-nspawn"
    if part.startswith("lxc.payload."):
        name = part.removeprefix("lxc.payload.")
    elif above in ("lxc", "lxc.payload"):
        name = part
    else:
        return None
    return (name, "lxc") if _NAME.fullmatch(name) else None


def _pod_uid(parts: list[str]) -> str | None:
    pods_at = next((at for at, part in enumerate(parts) if "kubepods" in part), len(parts))
    for part in reversed(parts[pods_at:]):
        if found := _POD_SLICE.fullmatch(part) or _POD.fullmatch(part):
            return found.group(1).replace("_", "-")
    return None
