"""The memory of a process that the kernel holds in its coredump: what is resident, and its bytes.

`process_vm_readv` copies twice as fast as a read of /proc/PID/mem (5.8 against 3.0 GB/s into
memory that is faulted in, Linux 6.18), which goes through a bounce page; but only the latter reads
what the process itself may not (PROT_NONE), as the kernel's own dump does. So: the first, and where
that stops, the second for that page.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from crashd.edge.capture.process import pidfd_pid

PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), linux/fs.h, 6.7
_PAGE_IS_PRESENT, _PAGE_IS_SWAPPED, _PAGE_IS_PFNZERO = 8, 16, 32
_SCAN_ARG = struct.Struct("=12Q")
_REGION = struct.Struct("=3Q")
_REGIONS_MAX = 4096
IOV_MAX = 1024
"""Ranges of one read: UIO_MAXIOV, linux/uio.h."""
_MADV_POPULATE_WRITE = 23  # linux/mman.h
_POPULATE_BYTES = 2 << 20
_MFD_HUGE_SHIFT = 26  # linux/memfd.h
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PAGEMAP_BYTES = 1 << 20
_SLICE_BYTES = 512
_ABSENT = (bytes(_SLICE_BYTES), struct.pack("=Q", 1 << 55) * (_SLICE_BYTES // 8))
"""Of pagemap: nothing there, without and with the soft-dirty bit that a new mapping has."""


class GoneError(Exception):
    """The process is no longer held in its coredump, or was never to be read."""

    def __str__(self) -> str:
        """Return the one reason there is."""
        return "the process was gone before its memory was read"


class ProcessMemory:
    """Owns descriptors of the process's mem, pagemap and status; all of one and the same address
    space, whoever gets its pid.
    """

    def __init__(self, pidfd: int) -> None:
        """Open the process that `pidfd` means.

        Raises:
            GoneError: it is not (or no longer) there.
            OSError: /proc does not let us.

        """
        pid = pidfd_pid(pidfd)
        if pid is None:
            raise GoneError
        self.scans = True
        """Whether PAGEMAP_SCAN is there; until minimum kernel 6.7."""
        self._tid, self._mem, self._pagemap, self._status = pid, -1, -1, -1
        self._libc = ctypes.CDLL(None, use_errno=True)
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if pidfd_pid(pidfd) != pid:
                raise GoneError
            self._open(process)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(process)

    def _open(self, process: int) -> None:
        """Open the files of a thread that has its memory still, which one that ended has not."""
        for task in (str(self._tid), *os.listdir(f"/proc/self/fd/{process}/task")):
            place = f"task/{task}/"
            self._status = os.open(place + "status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
            if self.held():
                self._tid = int(task)
                self._mem = os.open(place + "mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
                self._pagemap = os.open(
                    place + "pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process
                )
                return
            os.close(self._status)
            self._status = -1
        raise GoneError

    def close(self) -> None:
        """Close all; the process is not held by them."""
        for fd in (self._mem, self._pagemap, self._status):
            if fd >= 0:
                os.close(fd)
        self._mem = self._pagemap = self._status = -1

    def __enter__(self) -> "ProcessMemory":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def held(self) -> bool:
        """Tell whether the kernel is still in the coredump: all read before was as it crashed.

        SIGKILL ends the dump, and then the exit of its threads writes to its memory (robust
        futexes, clear_child_tid).
        """
        try:
            return b"\nCoreDumping:\t1\n" in os.pread(self._status, 1 << 14, 0)
        except OSError:
            return False

    def maps(self) -> bytes:
        """Read its maps, whole.

        Raises:
            OSError: it is gone.

        """
        with open(f"/proc/{self._tid}/maps", "rb") as file:
            return file.read()

    def resident(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Give what the page table has of ranges of addresses, ascending; the zero page left out
        where the kernel tells.

        Raises:
            OSError: the kernel does not say; EFAULT for addresses that no process has.

        """
        for start, end in ranges:
            if self.scans:
                try:
                    yield from self._scan(start, end)
                    continue
                except OSError as e:
                    if e.errno not in (errno.ENOTTY, errno.EINVAL, errno.EPERM):
                        raise
                    self.scans = False  # refused at its first call: nothing was given yet
            yield from self._walk(start, end)

    def _scan(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        regions = ctypes.create_string_buffer(_REGIONS_MAX * _REGION.size)
        there = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED
        while start < end:
            argument = bytearray(
                _SCAN_ARG.pack(
                    *(_SCAN_ARG.size, 0, start, end, 0, ctypes.addressof(regions), _REGIONS_MAX, 0),
                    *(_PAGE_IS_PFNZERO, _PAGE_IS_PFNZERO, there, there),
                )
            )
            count = fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, argument)
            walked = _SCAN_ARG.unpack(argument)[4]
            found = memoryview(regions)[: count * _REGION.size]
            for low, high, _ in _REGION.iter_unpack(found):
                yield low, min(high, end)
                walked = max(walked, high)  # a region can end behind the reported walk_end
            if walked <= start:
                raise OSError(errno.EIO, "PAGEMAP_SCAN does not advance")
            start = walked

    def _walk(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Read pagemap itself, 8 bytes a page."""
        run: tuple[int, int] | None = None
        while start < end:
            wanted = min(_PAGEMAP_BYTES, (end - start) // PAGE_BYTES * 8)
            raw = os.pread(self._pagemap, wanted, start // PAGE_BYTES * 8)
            if not raw:
                raise OSError(errno.EIO, "pagemap ends")
            for low, high in _present_pages(raw):
                first, last = start + low * PAGE_BYTES, start + high * PAGE_BYTES
                if run is not None and run[1] == first:
                    run = run[0], last
                    continue
                if run is not None:
                    yield run
                run = first, last
            start += len(raw) // 8 * PAGE_BYTES
        if run is not None:
            yield run

    def read(self, ranges: Sequence[tuple[int, int]], view: memoryview) -> int:
        """Read ranges of (address, size), at most IOV_MAX, one behind the other into `view`.

        Returns the bytes read; fewer than asked for means that the next page cannot be read so. May
        block for as long as a file system needs for a page. Releases the GIL.

        Raises:
            GoneError: the address space is gone.

        """
        flat = [number for pair in ranges for number in pair]
        total = sum(flat[1::2])
        local = struct.pack("=2Q", ctypes.addressof(ctypes.c_char.from_buffer(view)), total)
        remote = struct.pack(f"={len(flat)}Q", *flat)
        count = self._libc.process_vm_readv(
            ctypes.c_int(self._tid), local, ctypes.c_ulong(1), remote,
            ctypes.c_ulong(len(ranges)), ctypes.c_ulong(0),
        )  # fmt: skip
        if count < 0:
            if ctypes.get_errno() == errno.ESRCH:
                raise GoneError
            return 0
        return int(count)

    def force(self, address: int, view: memoryview) -> int:
        """Read what the process itself may not, through /proc/PID/mem; 0 when there is no page to
        be had.

        Raises:
            GoneError: the address space is gone.

        """
        if address >= 1 << 63:
            return 0  # no offset for pread(2); such a page is process_vm_readv's or nobody's
        try:
            got = os.preadv(self._mem, [view], address)
        except OSError as e:
            if e.errno in (errno.EIO, errno.EFAULT):
                return 0
            raise
        if got == 0:
            raise GoneError
        return got


def _present_pages(raw: bytes) -> Iterator[tuple[int, int]]:
    """Find runs of present or swapped pages, as indices, in a piece of pagemap."""
    for at in range(0, len(raw), _SLICE_BYTES):
        part = raw[at : at + _SLICE_BYTES]
        if part in _ABSENT:
            continue
        start = None
        index = at // 8
        for index, entry in enumerate(memoryview(part).cast("Q"), at // 8):
            if entry >> 62:
                start = index if start is None else start
            elif start is not None:
                yield start, index
                start = None
        if start is not None:
            yield start, index + 1


def populate(view: memoryview, enough: Callable[[], bool]) -> None:
    """Fault memory in from its start on, until `enough`; whoever fills it does not wait for that.

    Where the kernel cannot (MADV_POPULATE_WRITE, 5.14) nothing is done. Releases the GIL.
    """
    libc = ctypes.CDLL(None)
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    for at in range(0, len(view), _POPULATE_BYTES):
        size = min(_POPULATE_BYTES, len(view) - at)
        arguments = (ctypes.c_void_p(start + at), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)
        if enough() or libc.madvise(*arguments) != 0:
            return


def huge_devices(mountinfo: bytes) -> frozenset[bytes]:
    """Tell which devices /proc/PID/maps shows for mappings of hugetlbfs.

    Those mounted are in `mountinfo`; each page size has one more, unmounted, for MAP_HUGETLB and
    memfds.
    """
    found = set()
    for line in mountinfo.split(b"\n"):
        before, _, behind = line.partition(b" - ")
        if behind.startswith(b"hugetlbfs "):
            major, _, minor = before.split(b" ", 3)[2].partition(b":")
            if major.isdigit() and minor.isdigit():
                found.add(_device(int(major), int(minor)))
    try:
        sizes = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        sizes = []
    for name in sizes:
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        if not kib.isdigit():
            continue
        size = (int(kib) << 10).bit_length() - 1
        try:
            fd = os.memfd_create(
                "probe", os.MFD_HUGETLB | os.MFD_CLOEXEC | size << os.MFD_HUGE_SHIFT
            )
        except OSError:
            continue
        device = os.fstat(fd).st_dev
        os.close(fd)
        found.add(_device(os.major(device), os.minor(device)))
    return frozenset(found)


def _device(major: int, minor: int) -> bytes:
    return b"%02x:%02x" % (major, minor)
