"""Who makes which file, on every file system of this machine: fanotify(7)."""

import ctypes
import os
import select
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple

# linux/fanotify.h
_UNLIMITED_QUEUE, _NONBLOCK, _CLOEXEC, _REPORT_DFID_NAME = 0x10, 0x2, 0x1, 0xC00
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_CREATE, _MOVED_TO, _OPEN_EXEC, _ON_DIRECTORY = 0x100, 0x80, 0x1000, 0x40000000
_QUEUE_OVERFLOW = 0x4000
_EVENT = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH8sIi")
_WRITABLE = ("ext4", "xfs", "btrfs", "tmpfs", "devtmpfs", "overlay")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Made(NamedTuple):
    """A name that appeared."""

    pid: int
    path: str


class MakeWatch:
    """Watches from `__enter__` on; `made` and `ran` have what was seen at `__exit__`."""

    def __init__(self, program: Path) -> None:
        """`program` is one whose processes are to be known, however short they live."""
        self._program = program
        self._stopping = False
        self.made: list[Made] = []
        self.ran: set[int] = set()

    def __enter__(self) -> "MakeWatch":
        self._roots = []
        self._names = _open_group(_UNLIMITED_QUEUE | _REPORT_DFID_NAME)
        for root in _file_systems():
            if _mark(self._names, _MARK_FILESYSTEM, _CREATE | _MOVED_TO | _ON_DIRECTORY, root):
                self._roots.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY))
        assert self._roots
        self._runs = _open_group(_UNLIMITED_QUEUE)
        assert _mark(self._runs, 0, _OPEN_EXEC, os.fspath(self._program))
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping = True
        self._thread.join()
        for fd in (self._names, self._runs, *self._roots):
            os.close(fd)

    def _watch(self) -> None:
        while True:
            last = self._stopping
            self._take(self._runs)
            self._take(self._names)
            if last:
                return
            time.sleep(0.002)

    def _take(self, group: int) -> None:
        while True:
            try:
                raw = os.read(group, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(raw):
                size, _, _, head, mask, fd, pid = _EVENT.unpack_from(raw, at)
                assert not mask & _QUEUE_OVERFLOW
                if group == self._runs:
                    self.ran.add(pid)
                    os.close(fd)
                else:
                    self.made.append(Made(pid, self._path(raw[at + head : at + size])))
                at += size

    def _path(self, info: bytes) -> str:
        """Turn the handle of a directory and a name into a path, while the directory is there."""
        _, _, size, _, handle_size, handle_type = _INFO.unpack_from(info)
        end = _INFO.size + handle_size
        handle = struct.pack("=Ii", handle_size, handle_type) + info[_INFO.size : end]
        name = os.fsdecode(info[end:size].split(b"\0")[0])
        for root in self._roots:
            fd = _LIBC.open_by_handle_at(root, handle, os.O_PATH)
            if fd >= 0:
                try:
                    return os.readlink(f"/proc/self/fd/{fd}") + "/" + name
                finally:
                    os.close(fd)
        return "?/" + name


def _open_group(flags: int) -> int:
    fd: int = _LIBC.fanotify_init(flags | _NONBLOCK | _CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    return fd


def _mark(group: int, flags: int, mask: int, path: str) -> bool:
    """Begin to watch; False where this file system does not tell."""
    arguments = (ctypes.c_uint64(mask), -100, os.fsencode(path))
    return int(_LIBC.fanotify_mark(group, flags | _MARK_ADD, *arguments)) == 0


def _file_systems() -> list[str]:
    """Give a mount point of each file system that files can be made on."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, more = line.partition(" - ")
        device, _, point = fields.split()[2:5]
        if more.split()[0] in _WRITABLE:
            found.setdefault(device, point)
    return list(found.values())


class RunWatch:
    """Tells how long each process of one program ran: `seconds`, in the order of their ends."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._stopping = False
        self.seconds: list[float] = []

    def __enter__(self) -> "RunWatch":
        self._group = _open_group(_UNLIMITED_QUEUE)
        assert _mark(self._group, 0, _OPEN_EXEC, os.fspath(self._program))
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping = True
        self._thread.join()
        os.close(self._group)

    def _watch(self) -> None:
        began: dict[int, float] = {}
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        looked = time.monotonic()
        while began or not self._stopping:
            ready = poll.poll(20)
            before, looked = looked, time.monotonic()
            for fd, _ in ready:
                if fd != self._group:
                    self.seconds.append(looked - began.pop(fd))
                    poll.unregister(fd)
                    os.close(fd)
                    continue
                raw = os.read(self._group, _EVENT.size)
                opened, pid = _EVENT.unpack(raw)[-2:]
                os.close(opened)
                try:
                    pidfd = os.pidfd_open(pid)
                except ProcessLookupError:
                    # It ended before this thread could look, so all of it lies between two looks.
                    self.seconds.append(time.monotonic() - before)
                    continue
                began[pidfd] = time.monotonic()
                poll.register(pidfd, select.POLLIN)
