"""One crash captured twice: first from memory, then from the stream of the very same dump, and
compared byte for byte. This process plays the daemon.
"""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crashd.daemon.capture import engines
from crashd.daemon.capture.capture import read_head
from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pump import Pump
from crashd.daemon.capture.source import CoreSource
from crashd.daemon.capture.store_core import copy_memory
from crashd.daemon.capture.timedread import Reader
from crashd.domain.crash.model import Disposition
from crashd.domain.crash.record import Allowance
from crashd.edge.capture import handoff
from crashd.edge.capture.incoming import IncomingCore
from crashd.store.entry import prepare
from crashd.store.handlerfile import install_handler
from crashd.store.paths import Paths
from tests.running import wait_until
from tests.system.conftest import raise_core_limit

ALL = Allowance((1 << 63) - 1, Disposition.FULL, None)
NO_LIMIT = 1 << 62
OPTIONS = Options(
    engine="memory",
    max_core=None,
    honour_rlimit=False,
    keep_free_bytes=0,
    level=1,
    threads=0,
    deadline_ns=120 * 10**9,
    page_timeout_ns=20 * 10**9,
    environ="drop",
    patterns=(),
)


class SparseFile:
    """A sink that keeps the core as it is, zeros as holes."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.size = self.hole_bytes = self.resident_bytes = 0

    def write(self, data: memoryview) -> None:
        """Put bytes."""
        while data:
            count = os.pwrite(self._fd, data, self.size)
            self.size += count
            data = data[count:]

    def hole(self, size: int) -> None:
        """Put zeros."""
        self.size += size
        self.hole_bytes += size
        os.ftruncate(self._fd, self.size)

    def read(self, size: int, offset: int) -> bytes:
        """Read back."""
        return os.pread(self._fd, size, offset).ljust(size, b"\0")[: max(0, self.size - offset)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it."""

    size_bytes: int
    """Of the stream."""
    hole_bytes: int
    """What the memory engine did not have to read."""
    extents: int
    doubt: str | None
    difference: str | None
    """The first place where the two differ, in words."""
    missed_bytes: int
    """What memory has where the stream has only zeros."""
    head: bytes


def compare(incoming: IncomingCore, scratch: Path, scans: bool = True) -> Comparison:
    """Capture a core by memory, then drain its stream, and compare."""
    deadline_ns = time.monotonic_ns() + OPTIONS.deadline_ns
    raw, head, trouble = read_head(incoming, deadline_ns)
    assert head is not None, trouble
    source = CoreSource(incoming, raw, head, OPTIONS, Reader())
    source.open_memory(incoming.snapshot().get("mountinfo", b""))
    taken = SparseFile(scratch)
    if source.memory is not None:
        source.memory.scans = scans
        pump = Pump(taken, 512 << 20, NO_LIMIT, None)
        reason = copy_memory(source, source.memory, head, pump, ALL, deadline_ns)
        assert reason is None, reason
        pump.finish()
    judge = _Judge(taken)
    pump = Pump(judge, 64 << 20, NO_LIMIT, None)
    engines.drain(incoming, raw, pump, deadline_ns)
    pump.finish()
    difference = judge.difference
    if source.doubt is None and difference is None and judge.size != taken.size:
        difference = f"{taken.size} bytes from memory, {judge.size} from the stream"
    source.release()
    extents = len(head.segments)
    doubt = source.doubt
    return Comparison(
        judge.size, taken.hole_bytes, extents, doubt, difference, judge.missed_bytes, raw
    )


class _Judge:
    """A sink that compares what it is given with what the other engine took."""

    def __init__(self, other: SparseFile) -> None:
        self._other = other
        self.size = self.resident_bytes = 0
        self.difference: str | None = None
        self.missed_bytes = 0

    def write(self, data: memoryview) -> None:
        """Compare bytes."""
        mine = bytes(data)
        theirs = self._other.read(len(mine), self.size)
        if mine != theirs and len(mine) != len(theirs):
            self.difference = self.difference or f"at {self.size + len(theirs):#x} of the core"
        elif mine != theirs:
            for at in range(0, len(mine), 4096):
                self._compare(mine[at : at + 4096], theirs[at : at + 4096], self.size + at)
        self.size += len(mine)

    def _compare(self, mine: bytes, theirs: bytes, at: int) -> None:
        if mine == theirs:
            return
        if not any(mine):
            self.missed_bytes += len(mine)
        elif self.difference is None:
            first = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            self.difference = f"at {at + first:#x} of the core"

    def hole(self, size: int) -> None:
        """Compare zeros that were read, which reach a sink as holes."""
        for at in range(0, size, 1 << 20):
            self.write(memoryview(bytes(min(1 << 20, size - at))))


class Impostor:
    """This process in the daemon's place: the kernel's handler hands its crashes to it."""

    def __init__(self, root: Path, register: Callable[[Paths], None]) -> None:
        self.paths = Paths(root)
        self.paths.runtime_dir.mkdir(parents=True)
        prepare(self.paths)
        install_handler(self.paths)
        self.server = handoff.listen_unix(self.paths.handoff_socket, socket.SOCK_SEQPACKET, 0o600)
        register(self.paths)

    def close(self) -> None:
        """Stop listening."""
        self.server.close()

    def crash(
        self, command: Sequence[str], scans: bool = True, kill: int | None = None
    ) -> Comparison:
        """Run a program until it crashes, and capture that both ways."""
        found: list[Comparison | BaseException] = []

        def serve() -> None:
            try:
                found.append(self._serve(scans))
            except BaseException as e:  # told to the test
                found.append(e)

        thread = threading.Thread(target=serve)
        thread.start()
        child = subprocess.Popen(command, preexec_fn=raise_core_limit)
        status = child.wait(180)
        thread.join(60)
        assert status in (-11, 139), status
        assert found, "no crash came"
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _serve(self, scans: bool) -> Comparison:
        accepted: list[handoff.Connection] = []

        def there() -> bool:
            connection = handoff.accept(self.server)
            if connection is not None:
                accepted.append(connection)
            return bool(accepted)

        wait_until(there, 60, "the handler connects")
        messages: list[handoff.Handoff] = []

        def arrived() -> bool:
            message = accepted[0].receive()
            if message is not None:
                messages.append(message)
            return bool(messages)

        wait_until(arrived, 30, "the handler's message")
        with accepted[0] as connection:
            assert connection.send_receipt()
        message = messages[0]
        incoming = IncomingCore.from_pipe(message.core, message.pidfd)
        try:
            return compare(incoming, self.paths.root / "core", scans)
        finally:
            incoming.release()
