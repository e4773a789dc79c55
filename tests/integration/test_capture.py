"""Capture by stream into a real store: exact bytes, limits as facts, hostile streams, and the
mending after.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.daemon.capture.capture import Decision, Desk, capture
from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pump import StopError
from crashd.daemon.capture.salvage import salvage
from crashd.daemon.capture.sink import CoreSink
from crashd.daemon.capture.timedread import Reader
from crashd.domain.crash.model import Capture, Crash, Disposition, Engine, Kind, Mode, State
from crashd.domain.elf.elfcore import CoreHead
from crashd.edge.capture.incoming import IncomingCore
from crashd.store import entry as entries
from crashd.store.corefile import read_core
from crashd.store.paths import Paths
from tests.builders.elfcore import (
    CoreFormat,
    CoreSegment,
    CoreThread,
    build_core,
    build_image,
    build_notes,
)

NOISE = random.Random(11).randbytes(700_000)
EXE = build_image(bytes(range(20))).ljust(4096, b"\0")
NOTES = build_notes(
    CoreFormat(),
    threads=(CoreThread(100, 11, pc=0x401000), CoreThread(101)),
    siginfo=(11).to_bytes(4, "little")
    + bytes(4)
    + (1).to_bytes(4, "little")
    + bytes(4)
    + (0x10).to_bytes(8, "little")
    + bytes(104),
    auxv={3: 0x400040, 23: 0, 11: 1000, 12: 1000},
)
CORE = build_core(
    notes=NOTES,
    segments=[
        CoreSegment(0x400000, EXE),
        CoreSegment(0x600000, NOISE),
        CoreSegment(0x10000000, bytes(6 << 20)),
        CoreSegment(0x7F0000000000, b"stack" * 5000),
    ],
)
OPTIONS = Options(
    engine="auto",
    page_timeout_ns=10**9,
    max_core=None,
    honour_rlimit=True,
    keep_free_bytes=0,
    level=3,
    threads=0,
    deadline_ns=20 * 10**9,
    environ="scrub",
    patterns=(),
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    entries.prepare(found)
    return found


@pytest.fixture
def entry(paths: Paths) -> Iterator[entries.Entry]:
    with entries.create(paths, a_crash()) as made:
        yield made


def a_crash() -> Crash:
    return Crash(
        "20261123t050209-0123abcd-100-k0000001",
        Kind.PROCESS,
        State.CAPTURING,
        1_795_412_639 * 10**9,
        "0123abcd" * 4,
        boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        pid=100,
        ns_pid=100,
        signal=11,
        comm=b"prog",
        capture=Capture(mode=Mode.PIPE),
    )


class Daemonless(Desk):
    """Answers as the test says."""

    def __init__(self, decision: Decision) -> None:
        super().__init__()
        self.decision = decision
        self.heard = 0

    def identified(self) -> None:
        self.heard += 1

    def decide(self, crash: Crash, head: CoreHead | None, wanted: int) -> Decision:
        return self.decision


def run(
    entry: entries.Entry,
    stream: bytes,
    options: Options = OPTIONS,
    *,
    crash: Crash | None = None,
    end: bool = True,
    decision: Decision | None = None,
) -> Crash:
    """Capture `stream` as it comes through a pipe; without `end` its writer stalls after it."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)

    def feed() -> None:
        view = memoryview(stream)
        try:
            while view:
                view = view[os.write(write_fd, view) :]
        except BrokenPipeError:
            pass
        if end:
            os.close(write_fd)

    writer = threading.Thread(target=feed)
    writer.start()
    desk = Daemonless(decision or Decision())
    incoming = IncomingCore.from_pipe(read_fd, None)
    final = capture(
        crash or a_crash(),
        entry,
        incoming,
        options,
        desk,
        with_proc=True,
        reader=Reader(),
    )
    writer.join(10)
    if not end:
        os.close(write_fd)
    assert desk.heard == 1, "identified, once"
    assert entry.read() == final, "what is returned is what is on disk"
    assert set(entry.file_names()) <= {"crash.json", "core.zst"}
    return final


def stored(entry: entries.Entry) -> bytes:
    fd = entry.open_core()
    try:
        return b"".join(read_core(fd))
    finally:
        os.close(fd)


def test_capture_whole_stream_is_exact_and_explained(entry: entries.Entry) -> None:
    final = run(entry, CORE)
    assert stored(entry) == CORE
    assert (final.state, final.core.complete, final.capture.engine) == (
        State.COMPLETE,
        True,
        Engine.STREAM,
    )
    assert final.core.size_bytes == final.core.expected_bytes == len(CORE)
    assert final.core.stored_bytes < len(NOISE) + 50_000
    assert final.core.resident_bytes < len(CORE) - (5 << 20)
    assert final.build_id == bytes(range(20)).hex()
    assert (final.si_code, final.fault_address) == (1, 0x10)
    assert final.title == "SIGSEGV in prog: NULL pointer dereference at 0x10 (address not mapped)"
    assert [t["tid"] for t in final.threads] == [100, 101]
    assert final.capture.hold_ns is not None
    assert 0 < final.capture.hold_ns < 20 * 10**9
    assert final.capture.reason is None


SMALL_CORE = build_core(
    notes=build_notes(CoreFormat(), threads=(CoreThread(100, 11, sp=0x7F0000001000),)),
    segments=[
        CoreSegment(0x400000, EXE),
        CoreSegment(0x600000, NOISE[:100_000]),
        CoreSegment(0x7F0000000000, b"stack" * 5000),
    ],
)


@pytest.mark.parametrize("end", [True, False], ids=["ends early", "comes no further"])
def test_capture_mini_core_of_a_small_one_that_was_cut_is_taken_from_what_came(
    entry: entries.Entry, *, end: bool
) -> None:
    """A small core is read, and its process let go, before it is decided that a mini core is
    enough: what had not come by then was asked of a descriptor that was closed.
    """
    mini = Decision(Disposition.MINI, "a loop")
    options = replace(OPTIONS, deadline_ns=20 * 10**9 if end else 10**9)
    final = run(entry, SMALL_CORE[:-20_000], options, end=end, decision=mini)
    assert final.state is State.TRUNCATED
    assert final.capture.disposition is Disposition.MINI
    assert final.capture.reason is not None
    assert ("ended after" if end else "deadline") in final.capture.reason
    got = stored(entry)
    assert got[:4] == b"\x7fELF" and final.core.size_bytes == len(got)


@pytest.mark.parametrize(
    "cut", [1, 63, 64, 100, 64 + 56 * 5, 64 + 56 * 5 + 200, 4096, 8192, len(CORE) - 1]
)
def test_capture_stream_cut_is_truncated_and_keeps_what_came(
    entry: entries.Entry, cut: int
) -> None:
    final = run(entry, CORE[:cut])
    assert final.state is State.TRUNCATED
    assert not final.core.complete
    assert final.capture.reason
    assert stored(entry) == CORE[:cut]


def test_capture_empty_stream_is_lost_with_its_metadata(entry: entries.Entry) -> None:
    final = run(entry, b"")
    assert (final.state, final.core.path) == (State.LOST, None)
    assert final.capture.reason == "the stream ended after 0 bytes"
    assert final.comm == b"prog"


@pytest.mark.parametrize(
    "stream", [b"\x7fELF", b"not an ELF core" * 500, CORE[:16] + b"\xff" * 3000]
)
def test_capture_of_no_core_keeps_the_bytes(entry: entries.Entry, stream: bytes) -> None:
    final = run(entry, stream)
    assert final.state is State.TRUNCATED
    assert stored(entry) == stream
    assert final.core.expected_bytes is None or not final.core.complete


def test_capture_over_max_core_is_cut_there_and_says_so(entry: entries.Entry) -> None:
    final = run(entry, CORE, replace(OPTIONS, max_core=300_000))
    assert final.state is State.TRUNCATED
    assert stored(entry) == CORE[:300_000]
    assert final.capture.reason == "capture.max_core is 300000 bytes"


def test_capture_rlimit_of_zero_keeps_metadata_with_the_cause(entry: entries.Entry) -> None:
    final = run(entry, CORE, crash=replace(a_crash(), rlimit_core=0))
    assert (final.state, final.core.path) == (State.METADATA_ONLY, None)
    assert final.fault_address == 0x10
    assert final.capture.reason == "RLIMIT_CORE of the process is 0 bytes"
    assert entry.file_names() == ["crash.json"]


def test_capture_rlimit_ignored_when_configured(entry: entries.Entry) -> None:
    final = run(
        entry, CORE, replace(OPTIONS, honour_rlimit=False), crash=replace(a_crash(), rlimit_core=0)
    )
    assert final.state is State.COMPLETE


def test_capture_no_free_space_writes_no_core(entry: entries.Entry) -> None:
    final = run(entry, CORE, replace(OPTIONS, keep_free_bytes=1 << 60))
    assert (final.state, final.core.path) == (State.METADATA_ONLY, None)
    assert "keep_free" in (final.capture.reason or "")
    assert entry.file_names() == ["crash.json"]


@pytest.mark.parametrize("held", [0, 64, len(CORE) - 5])
def test_capture_writer_that_stalls_ends_at_the_deadline(entry: entries.Entry, held: int) -> None:
    started = time.monotonic()
    final = run(entry, CORE[:held], replace(OPTIONS, deadline_ns=3 * 10**8), end=False)
    assert time.monotonic() - started < 5
    assert final.state is (State.TRUNCATED if held else State.LOST)
    assert final.capture.reason == "the core did not arrive before capture.deadline"


def test_capture_pidfd_of_another_process_gives_it_nothing_of_proc(entry: entries.Entry) -> None:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.close(write_fd)
    final = capture(
        replace(a_crash(), dumpable=1, uid=os.getuid(), gid=os.getgid()),
        entry,
        IncomingCore.from_pipe(read_fd, os.pidfd_open(os.getpid())),
        OPTIONS,
        Desk(),
        with_proc=True,
        reader=Reader(),
    )
    assert final.warnings == (
        f"the pidfd is that of pid {os.getpid()}: nothing was read of either process",
    )
    assert (final.exe, final.environ, final.owner_uid) == (b"", None, None)


def test_salvage_partial_core_is_truncated_and_readable(entry: entries.Entry) -> None:
    run(entry, CORE)
    whole_fd = entry.open_core()
    size = os.fstat(whole_fd).st_size
    raw = os.pread(whole_fd, size, 0)
    os.close(whole_fd)
    for cut in (size - 100, size // 2, 3, 0):
        entry.drop_core()
        fd = entry.create_core()
        os.write(fd, raw[:cut])
        os.close(fd)
        final = salvage(a_crash(), entry, "killed")
        assert entry.read() == final
        assert final.capture.reason == "killed"
        if cut > 3:
            assert final.state is State.TRUNCATED
            assert CORE.startswith(stored(entry))
            assert final.core.size_bytes == len(stored(entry))
        else:
            assert (final.state, final.core.path) == (State.LOST, None)
        assert "core.zst.partial" not in entry.file_names()


def test_salvage_core_that_was_all_there_is_complete(entry: entries.Entry) -> None:
    run(entry, CORE)
    entry.write(a_crash(), sync=False)  # the writer died between the core's rename and the record's
    final = salvage(a_crash(), entry, "killed")
    assert (final.state, final.core.complete, final.capture.reason) == (State.COMPLETE, True, None)
    assert final.fault_address == 0x10


def test_salvage_nothing_there_is_lost(entry: entries.Entry) -> None:
    final = salvage(a_crash(), entry, "killed before it began")
    assert (final.state, final.capture.reason) == (State.LOST, "killed before it began")


def test_sink_of_holes_stops_where_space_is_to_stay_free(entry: entries.Entry) -> None:
    """Each takes its 4 bytes for 128 KiB: 40 GiB are 1.25 MiB, and none is too small to count."""

    class Small(CoreSink):
        def _free(self) -> int:
            return (300 << 20) - os.fstat(self._fd).st_size

    sink = Small(entry, level=1, threads=0, keep_free_bytes=0, wanted=None)
    with pytest.raises(StopError, match="keep_free"):
        for _ in range(400):
            sink.hole(40 << 30)
            sink.write(memoryview(b"x" * 4096))
    assert os.fstat(sink._fd).st_size < 50 << 20
    sink.close()
