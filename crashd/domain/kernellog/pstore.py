"""Reassembles records of pstore: the last part of a kernel's log, kept by the firmware.

    /sys/fs/pstore/dmesg-BACKEND-ID       a record; its first line says Panic#1 Part3
    /sys/fs/pstore/dmesg-BACKEND-ID.enc.z the same, which the kernel could not decompress
    /sys/fs/pstore/console-BACKEND-ID     all that the console showed up to the end
    /var/lib/systemd/pstore/…             the same, moved there by systemd-pstore.service

A log that is larger than a record is cut into parts, of which the first holds the end. A kernel
that oopses and then panics for it writes twice: both are one event. Source: fs/pstore/platform.c
(pstore_dump), fs/pstore/inode.c (pstore_mkfile), fs/pstore/zone.c,
drivers/firmware/efi/efi-pstore.c, Documentation/admin-guide/pstore-blk.rst, systemd's
src/pstore/pstore.c.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

PART_MAX: Final = 1 << 20
"""Bytes read of a record."""
PARTS_MAX: Final = 512
"""Of one event."""
GROUP_NS: Final = 60 * 10**9
"""All parts of one event are written within this time."""

_BACKEND = r"(?P<backend>[a-z0-9_]{1,32}?)(?:_pstore)?"
_NAME = re.compile(rf"dmesg-{_BACKEND}-(?P<id>\d{{1,20}})(?P<packed>\.enc\.z)?")
_CONSOLE = re.compile(rf"console-{_BACKEND}(?:-\d{{1,20}})?")
_HEAD = re.compile(
    rb"(?P<reason>[A-Z][A-Za-z]{1,15})"
    rb"(?:#(?P<count>\d{1,9})(?: Part(?P<part>\d{1,9}))?|: Total (?P<total>\d{1,9}) times)(?:\n|$)"
)
FATAL: Final = frozenset({"Panic", "Oops", "Emergency"})
"""Reasons that mean a crash; the others mean shutdowns (kmsg_dump_reason_str)."""
CONSOLE: Final = "Console"
PACKED: Final = "Compressed"
UNKNOWN: Final = "Unknown"


@dataclass(frozen=True, slots=True)
class Part:
    """One record."""

    backend: str
    reason: str
    count: int
    part: int
    time_ns: int
    text: bytes
    """Of what is PACKED the bytes as they are."""


@dataclass(frozen=True, slots=True)
class PstoreLog:
    """All parts of one event."""

    backend: str
    reason: str
    time_ns: int
    """The time of the newest part."""
    text: bytes
    """Empty where nothing could be decompressed."""
    parts: int
    token: str
    count: int = 0
    tokens: tuple[str, ...] = ()
    """Its own, and those that its events would have had if they had not been put together."""

    @property
    def is_crash(self) -> bool:
        """Whether its reason says that the kernel crashed, whatever its text says."""
        return self.reason in FATAL or self.reason == PACKED


def is_record_name(name: str) -> bool:
    """Return whether a file is named like a record of a kernel's words."""
    return (_NAME.fullmatch(name) or _CONSOLE.fullmatch(name)) is not None


def parse_record(name: str, raw: bytes, time_ns: int) -> Part | None:
    """Parse a file of pstore; None for what holds no kernel's words."""
    console = _CONSOLE.fullmatch(name)
    if console is not None:
        return Part(console["backend"], CONSOLE, 0, 1, time_ns, raw[-PART_MAX:])
    named = _NAME.fullmatch(name)
    if named is None or not named["packed"]:
        return parse_part(name, raw, time_ns)
    inflated = _inflate(raw)
    if inflated is None:
        return Part(named["backend"], PACKED, 0, int(named["id"]), time_ns, raw[:PART_MAX])
    return parse_part(name.removesuffix(named["packed"]), inflated, time_ns)


def parse_part(name: str, raw: bytes, time_ns: int) -> Part | None:
    """Parse a record as kernels write it; None for what is none (a console, a compressed one)."""
    named = _NAME.fullmatch(name)
    if named is None or named["packed"]:
        return None
    head = _HEAD.match(raw)
    if head is None:
        return Part(named["backend"], UNKNOWN, 0, 1, time_ns, raw[:PART_MAX])
    text = raw[head.end() : head.end() + PART_MAX]
    reason = head["reason"].decode("ascii")
    count = int(head["count"] or head["total"])
    return Part(named["backend"], reason, count, int(head["part"] or 1), time_ns, text)


def _inflate(raw: bytes) -> bytes | None:
    """Decompress what the kernel's own deflate wrote; None: it was another algorithm, or damaged.

    A record that is not decompressed at boot is one of a kernel with another compression: up to 6.5
    there were several, since then only deflate.
    """
    for bits in (-zlib.MAX_WBITS, zlib.MAX_WBITS):
        try:
            text = zlib.decompressobj(wbits=bits).decompress(raw, PART_MAX)
        except zlib.error:
            continue
        if _HEAD.match(text):
            return text
    return None


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
    token = _token(text)
    first = group[0]
    newest = max(part.time_ns for part in group)
    text = b"" if first.reason == PACKED else text
    return PstoreLog(
        first.backend, first.reason, newest, text, len(group), token, first.count, (token,)
    )


def _token(text: bytes) -> str:
    return f"pstore-{hashlib.sha256(text).hexdigest()[:32]}"


def merge_events(logs: Iterable[PstoreLog]) -> list[PstoreLog]:
    """Make one of an oops and the panic that it led to: Oops#1, then Panic#2 of the same boot. The
    logs come oldest first.
    """
    merged: list[PstoreLog] = []
    for log in logs:
        at = next(
            (n for n, known in reversed(list(enumerate(merged))) if _led_to(known, log)), None
        )
        if at is None:
            merged.append(log)
            continue
        before = merged[at]
        text = _overlay(before.text, log.text)
        token = _token(text)
        merged[at] = replace(
            log,
            text=text,
            parts=before.parts + log.parts,
            token=token,
            tokens=(token, *before.tokens, *log.tokens),
        )
    return merged


def _led_to(before: PstoreLog, log: PstoreLog) -> bool:
    return (
        before.backend == log.backend
        and before.reason in FATAL
        and log.reason in FATAL
        and 0 < before.count < log.count
        and log.time_ns - before.time_ns <= GROUP_NS
    )


def _overlay(before: bytes, after: bytes) -> bytes:
    """Put a later log behind an earlier one. Both are ends of one ring: what the later begins with
    is most often in the earlier.
    """
    at = _find_line(before, after.partition(b"\n")[0])
    if at < 0:
        # the first line of a record is cut where the record was full: the second is whole
        rest = after.partition(b"\n")[2]
        at = _find_line(before, rest.partition(b"\n")[0])
        after = rest if at >= 0 else after
    kept = before if at < 0 else before[:at]
    separator = b"" if not kept or kept.endswith(b"\n") else b"\n"
    return kept + separator + after


def _find_line(text: bytes, line: bytes) -> int:
    """Return where a whole line begins; -1: it is not there."""
    if not line:
        return -1
    return (b"\n" + text + b"\n").find(b"\n" + line + b"\n")
