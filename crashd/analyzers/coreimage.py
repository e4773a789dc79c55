"""The memory of a crashed process: from its core, and from the files for file mappings that the
core leaves out.
"""

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from crashd.domain.elf.auxv import AT_EXECFN, AT_SYSINFO_EHDR
from crashd.domain.elf.elfcore import CoreHead, Segment
from crashd.store.coreread import StoredCore

PF_X, PF_W, PF_R = 1, 2, 4
_STRING_MAX = 4096


@dataclass(frozen=True, slots=True)
class FilePart:
    """A range of addresses to which a file is mapped."""

    start: int
    end: int
    offset: int
    fd: int


class CoreImage:
    """The memory of a core's segments; descriptors stay their owner's."""

    def __init__(self, core: StoredCore, head: CoreHead) -> None:
        self.core = core
        self.head = head
        self._segments = sorted(head.segments, key=lambda s: s.vaddr)
        self._starts = [segment.vaddr for segment in self._segments]
        self._files: list[FilePart] = []
        self._file_starts: list[int] = []
        self.stack_pointers = [t.sp for t in head.threads if t.sp is not None]
        """An address in each known stack; code that finds another stack adds it."""
        if AT_EXECFN in head.auxv:  # at the top of the main stack, wherever its pointer is now
            self.stack_pointers.append(head.auxv[AT_EXECFN])
        self._names = sorted((f.start, f.end, f.name) for f in head.files)
        self._name_starts = [start for start, _, _ in self._names]

    @property
    def segments(self) -> list[Segment]:
        """All segments, ascending."""
        return self._segments

    def add_files(self, parts: list[FilePart]) -> None:
        """Set the files that provide the memory that the core does not have."""
        self._files = sorted(parts, key=lambda p: p.start)
        self._file_starts = [part.start for part in self._files]

    def segment(self, address: int) -> Segment | None:
        """Find the segment that contains an address."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        segment = self._segments[index]
        return segment if address < segment.vaddr + segment.memsz else None

    def is_code(self, address: int) -> bool:
        """Return whether an address is mapped and may be executed.

        gdb's gcore leaves out the mappings of files that were not written to, so an address that
        only NT_FILE has counts as code.
        """
        segment = self.segment(address)
        if segment is None:
            return bool(self.file_name(address))
        return bool(segment.flags & PF_X)

    def segment_above(self, address: int) -> Segment | None:
        """Find the first segment that begins above an address."""
        index = bisect_right(self._starts, address)
        return self._segments[index] if index < len(self._segments) else None

    def read(self, address: int, size: int) -> bytes:
        """Read memory; return fewer bytes where neither core nor file has it."""
        parts: list[bytes] = []
        while size > 0:
            part = self._read_part(address, size)
            if not part:
                break
            parts.append(part)
            address += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_part(self, address: int, size: int) -> bytes:
        segment = self.segment(address)
        if segment is not None:
            inside = address - segment.vaddr
            if inside < segment.filesz:
                return self.core.read(segment.offset + inside, min(size, segment.filesz - inside))
        return self.read_file(address, size)

    def read_file(self, address: int, size: int) -> bytes:
        """Read an address's bytes from the file that is mapped there."""
        index = bisect_right(self._file_starts, address) - 1
        if index < 0 or address >= self._files[index].end:
            return b""
        part = self._files[index]
        try:
            return os.pread(
                part.fd, min(size, part.end - address), part.offset + address - part.start
            )
        except OSError:
            return b""

    def word(self, address: int) -> int | None:
        """Read a pointer; None if the memory is not there."""
        size = self.head.bits // 8
        raw = self.read(address, size)
        return int.from_bytes(raw, self.head.byteorder) if len(raw) == size else None

    def string(self, address: int, limit: int = _STRING_MAX) -> bytes:
        """Read a string up to its NUL, or its first `limit` bytes."""
        return self.read(address, limit).split(b"\0", 1)[0]

    def describe(self, address: int) -> dict[str, Any]:
        """Describe an address: `kind`, `perms`, `name`, and the distance to the next segment."""
        segment = self.segment(address)
        above = self.segment_above(address)
        found: dict[str, Any] = {"address": address, "kind": "none", "perms": "", "name": ""}
        if above is not None:
            found["gap_bytes"] = above.vaddr - address
            found["above"] = self._kind(above)
        if segment is None:
            return found
        flags = segment.flags
        found["perms"] = "".join(
            letter if flags & bit else "-"
            for letter, bit in (("r", PF_R), ("w", PF_W), ("x", PF_X))
        )
        found["kind"] = self._kind(segment)
        found["name"] = self.file_name(address).decode("utf-8", "backslashreplace")
        found["start"], found["end"] = segment.vaddr, segment.vaddr + segment.memsz
        return found

    def file_name(self, address: int) -> bytes:
        """Return the name of the file that is mapped at an address; empty if there is none."""
        index = bisect_right(self._name_starts, address) - 1
        if index < 0 or address >= self._names[index][1]:
            return b""
        return self._names[index][2]

    def _kind(self, segment: Segment) -> str:
        end = segment.vaddr + segment.memsz
        if segment.vaddr == self.head.auxv.get(AT_SYSINFO_EHDR):
            return "vdso"
        if self.file_name(segment.vaddr):
            return "file"
        if not segment.flags & (PF_R | PF_W | PF_X):
            return "guard"
        if any(segment.vaddr <= sp < end for sp in self.stack_pointers):
            return "stack"
        return "anonymous"
