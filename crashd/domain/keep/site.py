"""The crash site: what is known of a crash before its memory is read, and decides what is kept."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from crashd.domain.crash.model import Crash
from crashd.domain.elf.elfcore import CoreHead


@dataclass(frozen=True, slots=True)
class Site:
    """Who crashed, and where. Texts that the process chose are its own, bytes as surrogates."""

    uid: int | None
    unit: str | None
    """The user's own unit where there is one."""
    exe: str
    comm: str
    build_id: str | None
    signal: int | None
    location: str | None
    """Module and offset of the crashing thread's program counter."""
    place: str | None = None
    """The container, see `place_of`."""
    account: str | None = None
    """Whose budgets it costs, see `account_of`."""

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Site":
        """Parse what `to_json` made."""
        return cls(**{item.name: document[item.name] for item in fields(cls)})


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
    """Return which container a crash was in; None for the host.

    A cgroup's name alone makes no container: a user may have been given a cgroup to make any below
    it. A service has its own mount namespace for PrivateTmp= and the like, another at each start,
    and is the host's all the same. Pods are named before containers, which get a new name when they
    are started again. The number of a namespace that is gone is given to another one.
    """
    if crash.mount_ns is None:
        return None
    if name := crash.pod_uid or crash.container_id:
        return name
    if (crash.user_unit or crash.unit or "").endswith(".service"):
        return None
    return f"mnt:{crash.mount_ns}"


def account_of(crash: Crash, user_of: Callable[[int], int] = int) -> str | None:
    """Return whose budgets a crash costs: a user's, or a container's for each user in it.

    What is in a user namespace costs the user whom its ids stand for: every user can make those,
    and without end. Other containers are root's making, and their uid 0 is not the host's root.
    `user_of` gives the user that a subordinate uid counts for.
    """
    if crash.uid is None:
        return None
    place, uid = place_of(crash), user_of(crash.uid)
    return f"{uid}" if place is None or crash.user_ns is not None else f"{crash.uid}@{place}"


def location_of(head: CoreHead | None) -> str | None:
    """Name module and offset of the crashing thread's program counter; None when not known.

    Outside of all files (code made at run time) it is the place in its page, which address space
    randomisation leaves alone: nothing better is known before memory is read.
    """
    pc = head.threads[0].pc if head is not None and head.threads else None
    if head is None or pc is None:
        return None
    for mapped in head.files:
        if mapped.start <= pc < mapped.end:
            name = mapped.name.decode("utf-8", "surrogateescape")
            return f"{name}+{pc - mapped.start + mapped.offset_bytes:#x}"
    return f"?+{pc & 0xFFF:#x}"
