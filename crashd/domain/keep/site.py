"""The crash site: what is known of a crash before its memory is read; it decides what to keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from crashd.domain.crash.model import Crash
from crashd.domain.elf.elfcore import CoreHead
from crashd.domain.elf.executables import find_place


@dataclass(frozen=True, slots=True)
class Site:
    """Who crashed, and where. The process chose some of the texts; bytes are surrogates."""

    uid: int | None
    unit: str | None
    """The unit of the user's own manager, if there is one."""
    exe: str
    comm: str
    build_id: str | None
    signal: int | None
    location: str | None
    """Module and offset of the crashing thread's program counter."""
    place: str | None = None
    """The container, see `place_of`."""
    account: str | None = None
    """The account that its budgets are charged to, see `account_of`."""

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Site":
        """Parse what `to_json` made."""
        return cls(**{name: document[name] for name in _NAMES})


_NAMES = tuple(item.name for item in fields(Site))


def site_of(crash: Crash, head: CoreHead | None, build_id: str | None) -> Site:
    """Return the site of a crash."""
    return Site(
        uid=crash.uid,
        unit=crash.user_unit or crash.unit,
        exe=crash.exe.decode("utf-8", "surrogateescape"),
        comm=crash.comm.decode("utf-8", "surrogateescape"),
        build_id=build_id,
        signal=crash.signal,
        location=location_of(head),
        place=place_of(crash),
        account=account_of(crash),
    )


def place_of(crash: Crash) -> str | None:
    """Return the container that a crash was in; None for the host.

    A cgroup's name alone does not prove a container: a user with a delegated cgroup can create
    any name below it. A service has its own mount namespace for PrivateTmp= and the like, a new
    one at each start, but belongs to the host. Pods come before containers, because containers
    get a new name at each start. The kernel reuses the number of a namespace that is gone.
    """
    if crash.mount_ns is None:
        return None
    if name := crash.pod_uid or crash.container_id:
        return name
    if (crash.user_unit or crash.unit or "").endswith(".service"):
        return None
    return f"mnt:{crash.mount_ns}"


def account_of(crash: Crash, user_of: Callable[[int], int] = int) -> str | None:
    """Return the account that pays for a crash: a user, or a user within a container.

    A process in a user namespace counts for the user that its ids map to, because every user
    can create any number of such namespaces. Other containers are created by root, and their
    uid 0 is not the host's root. `user_of` returns the user that a subordinate uid belongs to.
    """
    if crash.uid is None:
        return None
    place, uid = place_of(crash), user_of(crash.uid)
    return f"{uid}" if place is None or crash.user_ns is not None else f"{crash.uid}@{place}"


def group_of(crash: Crash) -> str:
    """Return what crashes at one site of one build have in common; empty if that is not known."""
    pc = crash.threads[0].get("pc") if crash.threads else None
    if crash.build_id is None or not isinstance(pc, str) or not (maps := crash.maps):
        return ""
    try:
        place = find_place(maps, int(pc, 16))
    except ValueError:
        return ""
    return f"{crash.uid} {crash.signal} {crash.build_id} {place} {crash.exe!r}"


def location_of(head: CoreHead | None) -> str | None:
    """Return module and offset of the crashing thread's program counter; None if unknown.

    Outside of all files (code generated at run time) it is the offset within the page, because
    address space randomisation does not change it, and nothing better is known before memory is
    read.
    """
    pc = head.threads[0].pc if head is not None and head.threads else None
    if head is None or pc is None:
        return None
    for mapped in head.files:
        if mapped.start <= pc < mapped.end:
            name = mapped.name.decode("utf-8", "surrogateescape")
            return f"{name}+{pc - mapped.start + mapped.offset_bytes:#x}"
    return f"?+{pc & 0xFFF:#x}"
