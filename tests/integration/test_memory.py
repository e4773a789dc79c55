"""What of a process is to be read, asked of the kernel: this process stands in for one that
crashed.
"""

import ctypes
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterator

import pytest

from crashd.domain.elf.memorymap import Backing, Behind, Range, parse_maps
from crashd.edge.capture.memory import PAGE_BYTES, ProcessMemory, shmem_devices

MADV_GUARD_INSTALL = 102  # linux/mman.h, 6.13
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00  # linux/userfaultfd.h
UFFD_API, UFFD_FEATURE_MINOR_SHMEM = 0xAA, 1 << 10
MODE_MISSING, MODE_MINOR = 1, 4
SYS_USERFAULTFD = 323 if os.uname().machine == "x86_64" else 282
PAGES = 64
_libc = ctypes.CDLL(None, use_errno=True)


class Own(ProcessMemory):
    """The memory of this process, which is not in a coredump."""

    def __init__(self) -> None:
        self.scans = self._knows_guards = True
        self._tid = os.getpid()
        self._process = self._place = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
        self._mem = self._status = -1
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)


@pytest.fixture
def own() -> Iterator[Own]:
    found = Own()
    with found:
        yield found


class Mapped:
    """Memory of PAGES pages, and where it is."""

    def __init__(self, fd: int, flags: int, offset: int = 0, pages: int = PAGES) -> None:
        self.map = mmap.mmap(fd, pages * PAGE_BYTES, flags=flags, offset=offset)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.size = pages * PAGE_BYTES

    def write(self, *pages: int) -> None:
        for page in pages:
            self.map[page * PAGE_BYTES] = 1

    def advise(self, first: int, last: int, advice: int) -> bool:
        start, size = self.address + first * PAGE_BYTES, (last - first) * PAGE_BYTES
        return int(_libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)) == 0

    def range(self) -> Range:
        """Find it in /proc/self/maps, as the plan does; the kernel may have joined it to others."""
        with open("/proc/self/maps", "rb") as file:
            found = next(m for m in parse_maps(file.read()) if m.start <= self.address < m.end)
        if not found.inode:
            return Range(self.address, self.address + self.size)
        assert found.device in shmem_devices(b"")
        name = f"{found.start:x}-{found.end:x}"
        behind = Behind(name, found.start, found.file_offset, not found.shared)
        return Range(self.address, self.address + self.size, Backing.SHMEM, behind)

    def found(self, own: Own, backing: Backing | None = None) -> list[int]:
        wanted = self.range()
        if backing is not None:
            wanted = wanted._replace(backing=backing, behind=None)
        return [
            (at - self.address) // PAGE_BYTES
            for start, end in own.resident([wanted])
            for at in range(start, end, PAGE_BYTES)
        ]


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, 4 * PAGES * PAGE_BYTES)
    try:
        os.stat(f"/proc/self/map_files/{_first_mapping()}")
    except PermissionError:
        pytest.skip("map_files wants CAP_CHECKPOINT_RESTORE")
    yield fd
    os.close(fd)


def _first_mapping() -> str:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        start, end = file.readline().split()[0].split("-")
    return f"{int(start, 16):x}-{int(end, 16):x}"


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512 // PAGE_BYTES


@pytest.mark.parametrize("scans", [True, False])
def test_resident_of_sparse_shared_memory_is_what_was_written(
    own: Own, memfd: int, scans: bool
) -> None:
    own.scans = scans
    mapped = Mapped(memfd, mmap.MAP_SHARED, PAGES * PAGE_BYTES)
    mapped.write(3, 4, 40)
    os.pwrite(memfd, b"x", PAGES * PAGE_BYTES + 50 * PAGE_BYTES + 7)  # not in our page table
    os.pwrite(memfd, b"x", 0)  # not in this mapping
    assert mapped.found(own) == [3, 4, 40, 50]
    assert allocated(memfd) == 5, "looking has filled it in"


def test_resident_of_private_shared_memory_has_what_the_process_wrote_itself(
    own: Own, memfd: int
) -> None:
    os.pwrite(memfd, b"x", 9 * PAGE_BYTES)
    mapped = Mapped(memfd, mmap.MAP_PRIVATE)
    mapped.write(2, 9, 10)
    os.pwrite(memfd, b"x", 30 * PAGE_BYTES)
    assert set(mapped.found(own)) >= {2, 9, 10, 30}
    assert len(mapped.found(own)) < PAGES


def test_resident_of_shared_memory_behind_the_end_of_its_file(own: Own) -> None:
    fd = os.memfd_create("short")
    os.ftruncate(fd, 10 * PAGE_BYTES)
    os.pwrite(fd, b"x", 10 * PAGE_BYTES - 1)
    mapped = Mapped(fd, mmap.MAP_SHARED, pages=10)
    os.ftruncate(fd, 5 * PAGE_BYTES)
    assert mapped.found(own) in ([], list(range(10)))  # the latter without CAP_CHECKPOINT_RESTORE
    os.close(fd)


def test_resident_of_shared_memory_is_all_of_it_where_map_files_are_closed(
    own: Own, memfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    mapped = Mapped(memfd, mmap.MAP_SHARED)
    mapped.write(1)
    monkeypatch.setattr(own, "_open_behind", refuse)
    assert mapped.found(own) == list(range(PAGES))


def test_resident_of_anonymous_shared_memory(own: Own, memfd: int) -> None:
    del memfd  # for the capability
    mapped = Mapped(-1, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    mapped.write(0, 63)
    assert mapped.range().backing is Backing.SHMEM
    assert mapped.found(own) == [0, 63]


def install_guards(mapped: Mapped, first: int, last: int) -> None:
    if not mapped.advise(first, last, MADV_GUARD_INSTALL):
        pytest.skip("this kernel has no guard regions for this memory")


def knows_guards(own: Own) -> bool:
    own.scans = own._knows_guards = True
    list(own.resident([Mapped(-1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).range()]))
    return own.scans and own._knows_guards


@pytest.mark.parametrize("scans", [True, False])
def test_resident_guard_regions_are_left_out(own: Own, scans: bool) -> None:
    mapped = Mapped(-1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.write(*range(PAGES))
    install_guards(mapped, 8, 40)
    if not knows_guards(own):
        pytest.skip("pagemap does not know guard regions: Linux 6.15")
    own.scans = scans
    assert mapped.found(own) == [*range(8), *range(40, 64)]


@pytest.mark.parametrize("backing", [Backing.SHMEM, Backing.BACKED])
def test_resident_guard_regions_of_files_are_left_out(
    own: Own, memfd: int, backing: Backing
) -> None:
    mapped = Mapped(memfd, mmap.MAP_SHARED)
    mapped.write(*range(PAGES))
    install_guards(mapped, 10, 20)
    if not knows_guards(own):
        pytest.skip("pagemap does not know guard regions: Linux 6.15")
    given = None if backing is Backing.SHMEM else backing
    assert mapped.found(own, given) == [*range(10), *range(20, 64)]


def test_resident_where_guards_are_not_known_asks_again_without(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kernel before 6.15 answers: EINVAL for a category that it does not know."""
    asked: list[int] = []
    real = fcntl.ioctl

    def old(fd: int, request: int, argument: bytearray) -> object:
        (mask,) = struct.unpack_from("=Q", argument, 72)
        asked.append(mask)
        if mask & 256:
            raise OSError(22, "EINVAL")
        return real(fd, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", old)
    mapped = Mapped(-1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.write(1, 2)
    assert mapped.found(own) == [1, 2]
    assert mapped.found(own, Backing.BACKED) == list(range(PAGES))
    assert own.scans
    assert [mask & 256 for mask in asked] == [256, 0], "asked for what it does not know again"


def test_shared_bytes_are_those_of_the_file(own: Own, memfd: int) -> None:
    mapped = Mapped(memfd, mmap.MAP_SHARED)
    mapped.write(5, 6)
    behind = mapped.range().behind
    assert behind is not None
    assert own.shared_bytes(behind) == 2 * PAGE_BYTES
    assert own.shared_bytes(behind._replace(name="1000-2000")) is None


@pytest.mark.parametrize(
    ("mode", "found"), [(MODE_MISSING, (False, True)), (MODE_MINOR, (True,) * 2)]
)
def test_faults_to_a_program_is_told_of_userfaultfd(
    own: Own, mode: int, found: tuple[bool, bool]
) -> None:
    fd = os.memfd_create("uffd")
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    mapped = Mapped(fd, mmap.MAP_SHARED)
    assert not own.faults_to_a_program(missing=True)
    user = _libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | 1)  # UFFD_USER_MODE_ONLY
    if user < 0:
        pytest.skip("no userfaultfd(2)")
    try:
        features = UFFD_FEATURE_MINOR_SHMEM if mode == MODE_MINOR else 0
        fcntl.ioctl(user, UFFDIO_API, bytearray(struct.pack("=3Q", UFFD_API, features, 0)))
        wanted = struct.pack("=4Q", mapped.address, mapped.size, mode, 0)
        fcntl.ioctl(user, UFFDIO_REGISTER, bytearray(wanted))
        with open("/proc/self/smaps", "rb") as file:
            assert re.search(rb"^VmFlags:.* u[im] ", file.read(), re.MULTILINE)
        assert (
            own.faults_to_a_program(missing=False),
            own.faults_to_a_program(missing=True),
        ) == found
    finally:
        os.close(user)
        os.close(fd)
