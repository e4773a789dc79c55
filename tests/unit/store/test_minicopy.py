"""Mini cores of stored cores, whatever the process left in its memory."""

import os
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from crashd.domain.elf.elfcore import parse_head
from crashd.store import corefile, minicopy
from crashd.store.corefile import CoreWriter, read_core
from crashd.store.coreread import StoredCore
from tests.builders.elfcore import CoreFormat, CoreSegment, build_core, build_notes

PHDR = 0x10000000
FRAME = 1 << 20


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[bytes], bytes]:
    """A function from a core to its mini core."""

    def copy(core: bytes) -> bytes:
        with (tmp_path / "whole").open("xb+") as whole, (tmp_path / "mini").open("xb+") as mini:
            writer = CoreWriter(whole.fileno(), level=1, threads=0)
            for at in range(0, len(core), FRAME // 4):
                writer.write(memoryview(core)[at : at + FRAME // 4])
            writer.finish()
            minicopy.copy_mini(whole.fileno(), mini.fileno())
            os.lseek(mini.fileno(), 0, os.SEEK_SET)
            return b"".join(read_core(mini.fileno(), None))

    return copy


def notes() -> bytes:
    return build_notes(CoreFormat(), auxv={3: PHDR, 4: 56, 5: 2})


def test_copy_mini_of_core_without_memory_has_the_notes(copied: Callable[[bytes], bytes]) -> None:
    found = copied(build_core(notes=notes()))
    assert [thread.tid for thread in parse_head(found).threads] == [100]


def test_copy_mini_follows_a_list_across_frames_for_so_long_only(
    copied: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores: list[StoredCore] = []

    class Counted(StoredCore):
        def read(self, offset: int, size: int) -> bytes:
            if self not in cores:
                cores.append(self)
            return super().read(offset, size)

    monkeypatch.setattr(corefile, "FRAME_MAX", FRAME)
    monkeypatch.setattr(minicopy, "StoredCore", Counted)
    monkeypatch.setattr(minicopy, "FOLLOWED_BYTES", 12 * FRAME)
    data = bytearray(b"some text" * (5 * FRAME // 9))
    # PT_PHDR, PT_DYNAMIC, DT_DEBUG, r_debug, and link_maps in turn in each frame
    entries = [PHDR + FRAME * (n % 5) + FRAME // 2 + 64 * n for n in range(200)]
    parts = {
        PHDR: pack("<2I6Q", 6, 4, 64, 0, 0, 112, 112, 8)
        + pack("<2I6Q", 2, 6, 0, 0x1000, 0, 256, 256, 8),
        PHDR + 0x1000: pack("<4Q", 21, PHDR + 0x2000, 0, 0),
        PHDR + 0x2000: pack("<2Q", 1, entries[0]),
    }
    for entry, after in zip(entries, [*entries[1:], 0], strict=True):
        parts[entry] = pack("<5Q", 0, 0, 0, after, 0)
    for address, part in parts.items():
        data[address - PHDR : address - PHDR + len(part)] = part
    found = copied(build_core(segments=[CoreSegment(PHDR, bytes(data))], notes=notes()))
    (core,) = cores
    assert parts[entries[1]] in found, "the list was followed"
    assert core.unpacked_bytes <= 12 * FRAME + 6 * FRAME
