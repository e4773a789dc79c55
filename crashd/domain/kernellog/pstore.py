"""Reassembles records of pstore: the last part of a kernel's log, kept by the firmware.

    /sys/fs/pstore/dmesg-BACKEND-ID       a record; its first line says Panic#1 Part3
    /var/lib/systemd/pstore/…             the same, moved there by systemd-pstore.service

A log larger than a record is cut into parts; part 1 holds the end. Source: fs/pstore/platform.c
(pstore_dump), drivers/firmware/efi/efi-pstore.c, Documentation/admin-guide/pstore-blk.rst,
systemd's src/pstore/pstore.c.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PART_MAX: Final = 1 << 20
"""Bytes read of a record."""
PARTS_MAX: Final = 512
GROUP_NS: Final = 60 * 10**9
"""All parts of one event are written within this time."""

_NAME = re.compile(r"dmesg-(?P<backend>[a-z0-9_]{1,32}?)(?:_pstore)?-(?P<id>\d{1,20})")
_HEAD = re.compile(rb"(?P<reason>[A-Z][A-Za-z]{1,15})#(?P<count>\d{1,9}) Part(?P<part>\d{1,9})\n?")
FATAL: Final = frozenset({"Panic", "Oops", "Emergency"})
"""Reasons that mean a crash; all others mean a shutdown (kmsg_dump_reason_str)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One record."""

    backend: str
    reason: str
    count: int
    part: int
    time_ns: int
    text: bytes


@dataclass(frozen=True, slots=True)
class PstoreLog:
    """All parts of one event."""

    backend: str
    reason: str
    time_ns: int
    """The time of the newest part."""
    text: bytes
    parts: int
    token: str


def parse_part(name: str, raw: bytes, time_ns: int) -> Part | None:
    """Parse a record; None if it is not a kernel's log (a console, a compressed record)."""
    named = _NAME.fullmatch(name)
    if named is None:
        return None
    head = _HEAD.match(raw)
    if head is None:
        return Part(named["backend"], "Unknown", 0, 1, time_ns, raw[:PART_MAX])
    text = raw[head.end() : head.end() + PART_MAX]
    reason = head["reason"].decode("ascii")
    return Part(named["backend"], reason, int(head["count"]), int(head["part"]), time_ns, text)


def assemble(parts: Iterable[Part]) -> list[PstoreLog]:
    """Join the parts of each event; return the logs, oldest first."""
    groups: list[list[Part]] = []
    for part in sorted(parts, key=lambda p: (p.backend, p.reason, p.count, p.time_ns, p.part)):
        last = groups[-1] if groups else None
        if last is not None and len(last) < PARTS_MAX and _is_same_event(last, part):
            last.append(part)
        else:
            groups.append([part])
    return sorted((_join(group) for group in groups), key=lambda log: log.time_ns)


def _is_same_event(group: list[Part], part: Part) -> bool:
    first = group[0]
    same = (part.backend, part.reason, part.count) == (first.backend, first.reason, first.count)
    new = all(part.part != known.part for known in group)
    return same and new and abs(part.time_ns - first.time_ns) <= GROUP_NS


def _join(group: list[Part]) -> PstoreLog:
    ordered = sorted(group, key=lambda part: -part.part)  # part 1 is the end of the log
    text = b"".join(part.text for part in ordered)
    digest = hashlib.sha256(text).hexdigest()[:32]
    first = group[0]
    newest = max(part.time_ns for part in group)
    return PstoreLog(
        first.backend, first.reason, newest, text, len(group), token=f"pstore-{digest}"
    )
