"""Mini cores of stored cores: what [fleet] cores = "mini" sends of a core that is whole here, and
what `crashctl --fleet dump --mini` fetches of a core that is whole there.
"""

from bisect import bisect_right

from crashd.domain.elf.minicore import MINI_MAX, plan_mini
from crashd.errors import FormatError
from crashd.store.corefile import CHUNK, CoreWriter
from crashd.store.coreread import Fetch, StoredCore, read_head

FOLLOWED_BYTES = 1 << 30
"""What is unpacked at most to follow the loader's list. Its members lie close together, unless a
process has made one to have a frame unpacked for each of them.
"""
_LEVEL = 3


def copy_mini(fd: int, target_fd: int, fetch: Fetch | None = None) -> None:
    """Write the mini core of a stored core; both descriptors stay the caller's.

    `fetch` is as in StoredCore.

    Raises:
        FormatError: it is not an ELF core, or has no notes.
        OSError: the disk is full.

    """
    core = StoredCore(fd, fetch)
    raw, head = read_head(core)
    if not head.notes:
        raise FormatError("core has no notes")
    segments = sorted(head.segments, key=lambda segment: segment.vaddr)
    starts = [segment.vaddr for segment in segments]

    def read(address: int, size: int) -> bytes:
        index = bisect_right(starts, address) - 1
        if index < 0 or core.unpacked_bytes >= FOLLOWED_BYTES:
            return b""
        segment = segments[index]
        inside = address - segment.vaddr
        if inside >= segment.filesz:
            return b""
        return core.read(segment.offset + inside, min(size, segment.filesz - inside))

    mini = plan_mini(head, raw, read, MINI_MAX)
    writer = CoreWriter(target_fd, level=_LEVEL, threads=0)
    writer.write(memoryview(mini.head))
    position = len(mini.head)
    for kept in mini.kept:
        writer.write(memoryview(bytes(kept.offset - position)))
        position = kept.offset
        while position < kept.offset + kept.size:
            left = kept.offset + kept.size - position
            data = core.read(kept.source + position - kept.offset, min(left, CHUNK))
            data = data or bytes(min(left, CHUNK))  # the core was cut there
            writer.write(memoryview(data))
            position += len(data)
    writer.finish()
