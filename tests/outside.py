"""What processes of ours change outside of their root, by fanotify: it tells who did it, so that a
machine may be busy with other things meanwhile. Root only.

Every name made, removed, moved, written or given another mode on the file systems that are watched
comes as an event with the pid; those below the root are nobody's business, and of the others only
those of a daemon's descendants or of the root's own handler count. A process that is gone before
its event is read is judged by its events just before, and otherwise only counted. Numbers come
again within minutes where many crash, so a process is its pid and its start. Source: fanotify(7),
proc_pid_stat(5).
"""

import ctypes
import os
import select
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

LOANED_IDS = "/run/crashd/ids"
HANDLER_COMMS = ("crashd-core", "crashd-core.py")
_FAN_CLOEXEC, _FAN_UNLIMITED_QUEUE = 0x1, 0x10
_FAN_REPORT_DFID_NAME = 0xC00
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_FAN_ONDIR, _FAN_Q_OVERFLOW = 0x40000000, 0x4000
_WORDS = {
    0x2: "written",
    0x4: "given other attributes",
    0x40: "moved away",
    0x80: "moved here",
    0x100: "made",
    0x200: "removed",
}
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_INFO = struct.Struct("=BBHQII")  # …_info_fid: header, fsid, and the head of a struct file_handle
_INFO_DFID_NAME = 2
_KNOWN_MAX = 10_000
_GONE_SECONDS = 5.0
"""So long a pid is still that of the process that had it; the kernel takes the numbers in turn."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class Outside:
    """The watch, with a thread of its own; to be used in a with-block."""

    def __init__(self, inside: Path, watched: Sequence[Path], family: Sequence[int] = ()) -> None:
        """Watch the whole file systems of `watched`; what `family` and its descendants change
        beneath `inside` is theirs.

        Raises:
            OSError: not permitted, or this kernel or file system has no such events.

        """
        self._inside = inside.resolve()
        self._family: dict[int, int | None] = {}
        """Start of each, in ticks after boot."""
        self._judged: dict[int, tuple[bool, float]] = {}
        self._names: dict[bytes, str | None] = {}
        self._mounts: dict[int, int] = {}
        self._stop_out, self._stop_in = os.pipe2(os.O_CLOEXEC)
        self._fd = _check(
            _libc.fanotify_init(
                _FAN_CLOEXEC | _FAN_UNLIMITED_QUEUE | _FAN_REPORT_DFID_NAME, os.O_RDONLY
            ),
            "fanotify_init",
        )
        for path in watched:
            self._mark(path)
        for pid in family:
            self.adopt(pid)
        self.touched: Counter[str] = Counter()
        """What was changed by ours outside: path and how, and how often."""
        self.events = 0
        self.unknown = 0
        """Events outside by processes that were gone when we looked."""
        self.overflowed = False
        self._thread = threading.Thread(target=self._run, name="outside", daemon=True)

    def _mark(self, path: Path) -> None:
        fsid = os.statvfs(path).f_fsid
        if fsid in self._mounts:
            return
        mask = ctypes.c_uint64(sum(_WORDS) | _FAN_ONDIR)
        flags = ctypes.c_uint(_FAN_MARK_ADD | _FAN_MARK_FILESYSTEM)
        name = os.fsencode(path)
        _check(_libc.fanotify_mark(self._fd, flags, mask, -1, name), f"fanotify_mark {path}")
        self._mounts[fsid] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "Outside":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        os.close(self._stop_in)
        self._thread.join()
        for fd in (self._fd, self._stop_out, *self._mounts.values()):
            os.close(fd)

    def adopt(self, pid: int) -> None:
        """Let one more process, and what descends of it, be ours; those that are gone no more."""
        for other, start in list(self._family.items()):
            if _stat_of(other)[2] != start:
                del self._family[other]
                self._remember(other, True)
        self._family[pid] = _stat_of(pid)[2]

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop_out, select.POLLHUP)
        while True:
            ready = dict(poll.poll())
            if self._fd in ready:
                self._read()
            elif self._stop_out in ready:
                return  # all that came before was read

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 18)
        position = 0
        while position + _EVENT.size <= len(data):
            length, _, _, head, mask, _, pid = _EVENT.unpack_from(data, position)
            self.events += 1
            if mask & _FAN_Q_OVERFLOW:
                self.overflowed = True
            elif pid != os.getpid():
                self._judge(data[position + head : position + length], mask, pid)
            position += length

    def _judge(self, info: bytes, mask: int, pid: int) -> None:
        path = self._path_of(info)
        if path is None or Path(path).is_relative_to(self._inside):
            return
        if Path(path).is_relative_to(LOANED_IDS):
            return  # reserved for the whole host, whatever root a daemon has
        ours = self._is_ours(pid)
        if ours is None:
            self.unknown += 1
        elif ours and "/__pycache__" not in path:  # Python's own, of a checkout
            how = ", ".join(word for bit, word in _WORDS.items() if mask & bit)
            self.touched[f"{path}: {how}"] += 1

    def _path_of(self, info: bytes) -> str | None:
        """Tell the path of an event's directory, now, and the name in it."""
        if len(info) < _INFO.size or info[0] != _INFO_DFID_NAME:
            return None
        _, _, length, fsid, size, _ = _INFO.unpack_from(info)
        handle = info[_INFO.size - 8 : _INFO.size + size]
        name = info[_INFO.size + size : length].split(b"\0")[0]
        key = fsid.to_bytes(8, "little") + handle
        if key not in self._names:
            if len(self._names) > _KNOWN_MAX:
                self._names.clear()
            self._names[key] = self._open_by_handle(fsid, handle)
        directory = self._names[key]
        return None if directory is None else f"{directory}/{os.fsdecode(name)}"

    def _open_by_handle(self, fsid: int, handle: bytes) -> str | None:
        mount = self._mounts.get(fsid)
        if mount is None:
            return None
        fd = _libc.open_by_handle_at(mount, handle, os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            return None  # gone already
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _is_ours(self, pid: int) -> bool | None:
        """Tell whether a process is of the family; None where it is gone, not seen lately."""
        one = pid
        for _ in range(32):
            comm, parent, start = _stat_of(one)
            if start is None:
                return True if one in self._family else self._recall(pid)
            if self._family.get(one) == start:
                return self._remember(pid, True)
            if comm in HANDLER_COMMS and self._is_our_handler(pid):
                return self._remember(pid, True)
            if parent <= 2:
                return self._remember(pid, False)
            one = parent
        return None

    def _is_our_handler(self, pid: int) -> bool:
        """Tell whether a handler is that of our root: there may be others', of other tests."""
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return any(os.fsencode(self._inside) in word for word in words[:3])

    def _remember(self, pid: int, ours: bool) -> bool:
        if len(self._judged) > _KNOWN_MAX:
            self._judged.clear()
        self._judged[pid] = ours, time.monotonic()
        return ours

    def _recall(self, pid: int) -> bool | None:
        ours, at = self._judged.get(pid, (None, 0.0))
        return ours if time.monotonic() - at < _GONE_SECONDS else None


def _stat_of(pid: int) -> tuple[str, int, int | None]:
    """Tell a process' name, parent and start (ticks after boot); no start where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", 0, None
    comm, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    return comm, int(fields[1]), int(fields[19])
