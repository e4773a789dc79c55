"""The crash site: what is known of a crash before its memory is read, and decides what is kept."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from crashd.domain.elfcore import CoreHead
from crashd.domain.model import Crash


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

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Site":
        """Parse what `to_json` made."""
        return cls(**{item.name: document[item.name] for item in fields(cls)})


def site_of(crash: Crash, head: CoreHead | None, build_id: str | None) -> Site:
    """Tell the site of a crash."""
    return Site(
        uid=crash.uid,
        unit=crash.user_unit or crash.unit,
        exe=crash.exe.decode("utf-8", "surrogateescape"),
        comm=crash.comm.decode("utf-8", "surrogateescape"),
        build_id=build_id,
        signal=crash.signal,
        location=location_of(head),
    )


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
