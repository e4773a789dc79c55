"""The memory of a process that the kernel holds in its coredump: its resident pages and their
bytes.

`process_vm_readv` copies twice as fast as a read of /proc/PID/mem (5.8 against 3.0 GB/s into
memory that is faulted in, Linux 6.18), which goes through a bounce page. But only the latter reads
pages that the process itself may not (PROT_NONE), as the kernel's own dump does. So the first is
used, and where it stops, the second for that page.

Over 400 lines because it is one idea: how the memory of a held process is read, with every kernel
interface that this takes.
"""

import ctypes
import errno
import fcntl
import itertools
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from crashd.domain.elf.memorymap import Backing, Behind, Range, Runs, overlap, union
from crashd.edge.capture.process import pidfd_pid

PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), linux/fs.h, 6.7
_PAGE_IS_PRESENT, _PAGE_IS_SWAPPED, _PAGE_IS_PFNZERO, _PAGE_IS_GUARD = 8, 16, 32, 256
_PM_GUARD = 1 << 58  # of an entry of pagemap, 6.15
_SCAN_ARG = struct.Struct("=12Q")
_REGION = struct.Struct("=3Q")
_REGIONS_MAX = 4096
IOV_MAX = 1024
"""Ranges of one read: UIO_MAXIOV, linux/uio.h."""
_MADV_POPULATE_WRITE = 23  # linux/mman.h
_POPULATE_BYTES = 2 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PAGEMAP_BYTES = 1 << 20
_USERFAULTFD = "anon_inode:[userfaultfd]"
_FDS_MAX = 4096
"""At most this many descriptors are searched for a userfaultfd."""
_SMAPS_BYTES = 1 << 17
_SMAPS_READS_MAX = 1 << 16
"""Reads of /proc/PID/smaps, each of less than a page: enough for a hundred thousand mappings."""
_VM_FLAG_MINOR = re.compile(rb"^VmFlags:.* ui(?: |$)", re.MULTILINE)
_VM_FLAGS_BOTH = re.compile(rb"^VmFlags:.* u[im](?: |$)", re.MULTILINE)
_SLICE_BYTES = 512
_ABSENT = (bytes(_SLICE_BYTES), struct.pack("=Q", 1 << 55) * (_SLICE_BYTES // 8))
"""Pieces of pagemap without any page, without and with the soft-dirty bit of a new mapping."""


class GoneError(Exception):
    """The process is no longer held in its coredump, or must not be read."""

    def __str__(self) -> str:
        """Return the only possible reason."""
        return "the process was gone before its memory was read"


class ProcessMemory:
    """Owns descriptors of the process's mem, pagemap and status. They all belong to one and the
    same address space, even after its pid belongs to another process.
    """

    def __init__(self, pidfd: int) -> None:
        """Open the process of `pidfd`.

        Raises:
            GoneError: it is not (or no longer) there.
            OSError: /proc refuses it.

        """
        pid = pidfd_pid(pidfd)
        if pid is None:
            raise GoneError
        self.scans = True
        """Whether the kernel has PAGEMAP_SCAN; until minimum kernel 6.7."""
        self._knows_guards = True
        """Whether it also knows guard regions; until minimum kernel 6.15."""
        self._tid = pid
        self._mem = self._pagemap = self._status = self._place = self._process = -1
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if pidfd_pid(pidfd) != pid:
                raise GoneError
            self._open(pid)
            if pidfd_pid(pidfd) != pid:
                raise GoneError
        except BaseException:
            self.close()
            raise

    def _open(self, pid: int) -> None:
        """Open the files of a thread that still has its memory; an ended thread has none."""
        for task in (str(pid), *os.listdir(f"/proc/self/fd/{self._process}/task")):
            place = f"task/{task}/"
            self._status = self._open_file(place + "status")
            if self.held():
                self._tid = int(task)
                self._mem = self._open_file(place + "mem")
                self._pagemap = self._open_file(place + "pagemap")
                self._place = self._process
                if self._tid != pid:
                    # Only /proc/TID, which no listing shows, has a thread's map_files.
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                    self._place = os.open(f"/proc/{task}", flags)
                return
            os.close(self._status)
            self._status = -1
        raise GoneError

    def _open_file(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._process)

    def close(self) -> None:
        """Close all descriptors; they do not hold the process."""
        for fd in {self._mem, self._pagemap, self._status, self._place, self._process}:
            if fd >= 0:
                os.close(fd)
        self._mem = self._pagemap = self._status = self._place = self._process = -1

    def __enter__(self) -> "ProcessMemory":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def held(self) -> bool:
        """Return whether the kernel is still in the coredump: all that was read before is then as
        it was at the crash.

        SIGKILL ends the dump; then the exiting threads write to the memory (robust futexes,
        clear_child_tid).
        """
        try:
            return b"\nCoreDumping:\t1\n" in os.pread(self._status, 1 << 14, 0)
        except OSError:
            return False

    def maps(self) -> bytes:
        """Read the whole of its maps.

        Raises:
            OSError: it is gone.

        """
        with open(f"/proc/{self._tid}/maps", "rb") as file:
            return file.read()

    def resident(self, ranges: Iterable[Range]) -> Iterator[tuple[int, int]]:
        """Yield the parts of address ranges that must be read, ascending; the rest are zeros.

        Of anonymous memory these are the pages in the page table, without the zero page if the
        kernel reports it; of shared memory those that its file has. Guard regions are never read.

        Raises:
            OSError: the kernel does not report it; EFAULT for addresses that no process has.

        """
        for wanted in ranges:
            if wanted.backing is Backing.ANONYMOUS:
                yield from self._of_page_table(wanted.start, wanted.end)
            else:
                yield from self._of_file(wanted)

    def _of_file(self, wanted: Range) -> Iterator[tuple[int, int]]:
        there: Runs = ((wanted.start, wanted.end),)
        if wanted.behind is not None:
            there = self._data(wanted.start, wanted.end, wanted.behind)
        guarded = self._unguarded(wanted.start, wanted.end)
        there = there if guarded is None else overlap(there, guarded)
        if wanted.behind is not None and wanted.behind.private:
            there = union(there, self._of_page_table(wanted.start, wanted.end))
        yield from there

    def _of_page_table(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield pages in the page table: present or swapped, neither the zero page nor a guard."""
        while self.scans:
            not_wanted = _PAGE_IS_PFNZERO | (_PAGE_IS_GUARD if self._knows_guards else 0)
            try:
                yield from self._scan(start, end, not_wanted, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED)
                return
            except OSError as e:  # refused at the first call: nothing was yielded yet
                if e.errno == errno.EINVAL and self._knows_guards:
                    self._knows_guards = False
                elif e.errno in (errno.ENOTTY, errno.EINVAL, errno.EPERM):
                    self.scans = False
                else:
                    raise
        yield from self._walk(start, end)

    def _unguarded(self, start: int, end: int) -> Iterator[tuple[int, int]] | None:
        """Yield all but the guard regions; None if the kernel does not know them.

        A guard region cannot be read, and finding that out page by page costs 10 s a GiB.
        """
        if not self.scans or not self._knows_guards:
            return None
        found = self._scan(start, end, _PAGE_IS_GUARD, 0)
        try:
            first = next(found, None)
        except OSError as e:
            if e.errno not in (errno.ENOTTY, errno.EINVAL, errno.EPERM):
                raise
            self._knows_guards = False  # until minimum kernel 6.15
            return None
        return found if first is None else itertools.chain((first,), found)

    def _scan(
        self, start: int, end: int, not_wanted: int, wanted: int
    ) -> Iterator[tuple[int, int]]:
        """Yield pages in no category of `not_wanted`, and in one of `wanted` unless that is 0."""
        regions = ctypes.create_string_buffer(_REGIONS_MAX * _REGION.size)
        while start < end:
            argument = bytearray(
                _SCAN_ARG.pack(
                    *(_SCAN_ARG.size, 0, start, end, 0, ctypes.addressof(regions), _REGIONS_MAX, 0),
                    *(not_wanted, not_wanted, wanted, wanted),
                )
            )
            count = fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, argument)
            walked = _SCAN_ARG.unpack(argument)[4]
            found = memoryview(regions)[: count * _REGION.size]
            for low, high, _ in _REGION.iter_unpack(found):
                yield low, min(high, end)
                walked = max(walked, high)  # a region can end after the reported walk_end
            if walked <= start:
                raise OSError(errno.EIO, "PAGEMAP_SCAN does not advance")
            start = walked

    def _data(self, start: int, end: int, behind: Behind) -> Iterator[tuple[int, int]]:
        """Yield the parts that the file of shared memory has there, in memory or swapped out.

        Reading a page that the file does not have would allocate it, in the process's own cgroup:
        a dump of sparse shared memory can get its process killed for memory (KERNEL.md).
        """
        try:
            file = self._open_behind(behind)
        except OSError:
            yield start, end  # as the kernel does
            return
        shift = behind.address - behind.file_offset
        try:
            at = start - shift
            while at < end - shift:
                data = _seek(file, at, os.SEEK_DATA)
                if data is None or data >= end - shift:
                    return
                at = _seek(file, data, os.SEEK_HOLE) or end - shift
                low, high = data // PAGE_BYTES * PAGE_BYTES, -(-at // PAGE_BYTES) * PAGE_BYTES
                yield max(low + shift, start), min(high + shift, end)
        finally:
            os.close(file)

    def _open_behind(self, behind: Behind) -> int:
        """Open the file of a mapping; the caller has checked that it is on tmpfs, where nothing
        blocks.
        """
        name = f"map_files/{behind.name}"
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._place)

    def shared_bytes(self, behind: Behind) -> int | None:
        """Return how much memory the file of shared memory has; None if it cannot be seen
        (map_files needs CAP_CHECKPOINT_RESTORE, or CAP_SYS_ADMIN before Linux 5.9).
        """
        try:
            found = os.stat(f"map_files/{behind.name}", dir_fd=self._place)
        except OSError:
            return None
        return found.st_blocks * 512

    def faults_to_a_program(self, *, missing: bool) -> bool:
        """Return whether a program supplies pages of shared memory by userfaultfd(2): the kernel's
        own dump leaves such a page out, but a reader from outside waits for it.

        That is so for pages that the file has (minor faults), and with `missing` also for pages
        that it lacks, which a caller that can examine the file does not read. A process that gave
        its userfaultfd to another one is not found: reads of such memory are given up after a
        while.
        """
        if not self._has_userfaultfd():
            return False
        wanted = _VM_FLAGS_BOTH if missing else _VM_FLAG_MINOR
        last = b""
        try:
            file = os.open("smaps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._place)
        except OSError:
            return False  # gone; the next read of its memory finds that out
        try:
            for _ in range(_SMAPS_READS_MAX):
                part = os.read(file, _SMAPS_BYTES)
                if not part:
                    break
                lines, _, last = (last + part).rpartition(b"\n")
                if wanted.search(lines):
                    return True
        except OSError:
            pass
        finally:
            os.close(file)
        return False

    def _has_userfaultfd(self) -> bool:
        """Return whether the process has a userfaultfd among its descriptors, or may have one.

        smaps walks the whole page table: 40 ms a GiB. Only these few processes must wait for that.
        """
        directory = f"/proc/self/fd/{self._place}/fd"
        try:
            numbers = os.listdir(directory)
            if len(numbers) > _FDS_MAX:
                return True
            return any(os.readlink(f"{directory}/{n}") == _USERFAULTFD for n in numbers)
        except OSError:
            return False  # gone; the next read of its memory finds that out

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
        """Read ranges of (address, size), at most IOV_MAX, one after the other into `view`.

        Return the bytes read; fewer than asked for means that this way cannot read the next page.
        May block for as long as a file system needs for a page. Releases the GIL.

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
        """Read what the process itself may not, through /proc/PID/mem; 0 when the page cannot be
        had.

        Raises:
            GoneError: the address space is gone.

        """
        if address >= 1 << 63:
            return 0  # no offset for pread(2); only process_vm_readv can read such a page
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
    """Yield runs of present or swapped pages, as indices, in a piece of pagemap."""
    for at in range(0, len(raw), _SLICE_BYTES):
        part = raw[at : at + _SLICE_BYTES]
        if part in _ABSENT:
            continue
        start = None
        index = at // 8
        for index, entry in enumerate(memoryview(part).cast("Q"), at // 8):
            if entry >> 62 and not entry & _PM_GUARD:
                start = index if start is None else start
            elif start is not None:
                yield start, index
                start = None
        if start is not None:
            yield start, index + 1


def is_zeros(view: memoryview) -> bool:
    """Return whether memory that can be written has only zeros, by memcmp(3), which reads some 30
    GB/s here; Python's own comparisons copy, or go item by item. Releases the GIL.
    """
    if not len(view) or view[0] or view[-1] or view[len(view) // 2]:
        return not len(view)
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    arguments = ctypes.c_void_p(start), ctypes.c_void_p(start + 1), ctypes.c_size_t(len(view) - 1)
    return bool(ctypes.CDLL(None).memcmp(*arguments) == 0)


def populate(view: memoryview, enough: Callable[[int], bool]) -> None:
    """Fault memory in from its start on, until `enough`, which is asked with the offset of the next
    piece, and may wait; the thread that fills it does not wait.

    If the kernel cannot do that (MADV_POPULATE_WRITE, 5.14), do nothing. Releases the GIL.
    """
    libc = ctypes.CDLL(None)
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    for at in range(0, len(view), _POPULATE_BYTES):
        size = min(_POPULATE_BYTES, len(view) - at)
        arguments = (ctypes.c_void_p(start + at), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)
        if enough(at) or libc.madvise(*arguments) != 0:
            return


def _seek(file: int, at: int, whence: int) -> int | None:
    """Return the next data or hole; None if the file ends before one."""
    try:
        return os.lseek(file, at, whence)
    except OSError as e:
        if e.errno != errno.ENXIO:
            raise
        return None


def huge_devices(mountinfo: bytes) -> frozenset[bytes]:
    """Return the devices that /proc/PID/maps shows for mappings of hugetlbfs.

    `mountinfo` lists the mounted ones; each page size has one more, unmounted, for MAP_HUGETLB and
    memfds.
    """
    found = _mounted(mountinfo, b"hugetlbfs")
    try:
        sizes = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        sizes = []
    for name in sizes:
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        if kib.isdigit():
            size = (int(kib) << 10).bit_length() - 1
            found |= _memfd_device(os.MFD_HUGETLB | size << os.MFD_HUGE_SHIFT)
    return frozenset(found)


def shmem_devices(mountinfo: bytes) -> frozenset[bytes]:
    """Return the devices that /proc/PID/maps shows for mappings of tmpfs.

    `mountinfo` lists the mounted ones; one more, unmounted, has memfds, SysV shared memory and
    MAP_SHARED|MAP_ANONYMOUS. The device alone shows that opening the file asks no server (FUSE,
    NFS).
    """
    return frozenset(_mounted(mountinfo, b"tmpfs") | _memfd_device(0))


def _mounted(mountinfo: bytes, kind: bytes) -> set[bytes]:
    """Return the devices of mounted file systems of a kind."""
    found = set()
    for line in mountinfo.split(b"\n"):
        before, _, after = line.partition(b" - ")
        if after.startswith(kind + b" "):
            major, _, minor = before.split(b" ", 3)[2].partition(b":")
            if major.isdigit() and minor.isdigit():
                found.add(_device(int(major), int(minor)))
    return found


def _memfd_device(flags: int) -> set[bytes]:
    """Make a memfd to see its device; empty if the kernel refuses."""
    try:
        fd = os.memfd_create("probe", os.MFD_CLOEXEC | flags)
    except OSError:
        return set()
    device = os.fstat(fd).st_dev
    os.close(fd)
    return {_device(os.major(device), os.minor(device))}


def _device(major: int, minor: int) -> bytes:
    return b"%02x:%02x" % (major, minor)
