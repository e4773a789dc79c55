"""The real handler as its own process: arguments of every kind, hand-over, giving up, spooling."""

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.corehandler import MEMORY_MODULE, RECEIPT_SECONDS
from crashd.domain.crash.coremeta import CoreMeta, parse_fields
from crashd.edge.capture.handoff import Connection, accept, listen_unix
from crashd.edge.capture.process import pidfd_pid
from crashd.store import spool
from crashd.store.handlerfile import NATIVE
from crashd.store.paths import Paths
from tests.builders.elfcore import CoreSegment, build_core
from tests.integration.handler import PYTHON_ONLY, make_root, start_handler

SHORT = ["7", "prog", "11", "1800000000"]
CORE = build_core(
    segments=[
        CoreSegment(0x400000, b"\1" * 8192),
        CoreSegment(0x800000, bytes(4 << 20)),
        CoreSegment(0x7F0000000000, b"\2" * 99),
    ]
)


DENSE = build_core(
    segments=[CoreSegment(0x400000, bytes(4 << 20)), CoreSegment(0x800000, b"\1" * (3 << 20))]
)


@pytest.fixture(scope="module")
def for_arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native handler for arm64, as a program that runs it in QEMU's emulator."""
    clang, emulator = shutil.which("clang"), shutil.which("qemu-aarch64")
    libraries = Path("/usr/lib/gcc-cross/aarch64-linux-gnu")
    if clang is None or emulator is None or not libraries.exists():
        # Debian's gcc for arm64 excludes that for 32-bit x86, which other tests use
        pytest.skip("no clang, libgcc-*-dev-arm64-cross or qemu-user")
    directory = tmp_path_factory.mktemp("arm64")
    made, program = directory / "handler", directory / "crashd-core"
    options = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static-pie", "-fPIE"]
    source = NATIVE.with_suffix(".c")
    target = "--target=aarch64-linux-gnu"
    subprocess.run([clang, target, *options, "-o", made, source], check=True)
    program.write_text(f'#!/bin/sh\nexec {emulator} -0 "$0" {made} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture(params=["native", "python", "arm64"])
def paths(request: pytest.FixtureRequest, short_tmp: Path) -> Paths:
    built = {"native": NATIVE, "python": PYTHON_ONLY}.get(request.param)
    made = make_root(short_tmp, built or request.getfixturevalue("for_arm64"))
    start = made.handler.read_bytes()[:4]
    assert start == b"\x7fELF" if request.param == "native" else start[:2] == b"#!"
    return made


@pytest.fixture
def server(paths: Paths) -> Iterator[socket.socket]:
    with listen_unix(paths.handoff_socket, socket.SOCK_SEQPACKET, 0o600) as listening:
        yield listening


def wait_for(server: socket.socket) -> Connection:
    assert select.select([server], [], [], 10)[0]
    connection = accept(server)
    assert connection is not None
    return connection


def the_spooled(paths: Paths) -> spool.SpoolEntry:
    (name,) = spool.ready_names(paths, 0)
    assert not name.endswith(".tmp")
    return spool.SpoolEntry.open(paths, name)


def read_all(fd: int) -> bytes:
    with open(fd, "rb", closefd=True) as file:
        return file.read()


def test_no_daemon_spools_the_core_sparse_and_exact(paths: Paths) -> None:
    run = start_handler(paths, SHORT)
    run.feed(CORE)
    assert run.wait() == 0
    with the_spooled(paths) as entry:
        fields = entry.fields()
        assert (fields["p"], fields["e"], fields["s"], fields["argc"]) == (
            b"7",
            b"prog",
            b"11",
            b"4",
        )
        assert entry.ending() is None
        fd = entry.open_core()
        assert fd is not None
        assert os.fstat(fd).st_blocks * 512 < 1 << 20
        assert read_all(fd) == CORE


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["7"],
        ["", "", "", ""],
        ["x", "prog", "eleven", "-5"],
        [*SHORT, "P", "I", "u", "g", "c", "d", "F", "h", "one", "too", "many"],
        [b"\xff\xfe", b"\xc3(", b"\x80", b"\xf0"],
        ["7", "a" * 100_000, "11", "1800000000"],
        ["../../etc/passwd", "../../x\n=", "$(id)", "`id`"],
        [*SHORT, "9" * 400, "9" * 400, "", "", "", "", "9" * 400, ""],
        [*SHORT, "99999999", "", "", "", "", "", "3", "h"],
    ],
)
def test_fault_11_arguments_of_every_kind_keep_the_crash(
    paths: Paths, arguments: list[str | bytes]
) -> None:
    run = start_handler(paths, arguments)
    run.feed(CORE)
    assert run.wait() == 0
    with the_spooled(paths) as entry:
        meta = CoreMeta.from_fields(entry.fields(), 1)
        assert meta.pid is None or meta.pid == 99999999 or meta.pid <= 1 << 22
        fd = entry.open_core()
        assert fd is not None
        assert read_all(fd) == CORE


def identity_of(paths: Paths, *arguments: str) -> tuple[bytes | None, bytes | None]:
    run = start_handler(paths, arguments)
    run.feed(CORE)
    assert run.wait() == 0
    (name,) = spool.ready_names(paths, 0)
    with spool.SpoolEntry.open(paths, name) as entry:
        fields, snapshot = entry.fields(), entry.snapshot()
    spool.remove(paths, name)
    assert snapshot == {}
    return fields.get("identity"), fields.get("P")


def test_pid_of_a_process_that_does_not_dump_is_not_believed(paths: Paths) -> None:
    pid = str(os.getpid())
    assert identity_of(paths, pid, "x", "11", "1800000000") == (None, None)
    rest = ("0", "0", "0", "1")
    assert identity_of(paths, pid, "x", "11", "1800000000", pid, pid, *rest, "", "h") == (
        None,
        pid.encode(),
    )


def test_pidfd_that_is_none_or_dead_is_not_replaced_by_the_pids_new_owner(paths: Paths) -> None:
    pid = str(os.getpid())
    for descriptor in ("3", "0", "99", "4000000000"):
        arguments = (pid, "x", "11", "1800000000", pid, pid, "0", "0", "0", "1", descriptor, "h")
        assert identity_of(paths, *arguments) == (None, pid.encode())


@pytest.mark.parametrize("core", [b"", b"x", b"not an ELF core" * 1000, CORE[:1000]])
def test_streams_of_every_kind_are_kept(paths: Paths, core: bytes) -> None:
    run = start_handler(paths, SHORT)
    run.feed(core)
    assert run.wait() == 0
    with the_spooled(paths) as entry:
        fd = entry.open_core()
        assert fd is not None
        assert read_all(fd) == core


def test_stdin_closed_still_ends_at_once(paths: Paths) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    run = start_handler(paths, SHORT, stdin=null)
    run.end()
    os.close(null)
    assert run.wait() == 0


def test_hand_over_gives_fields_and_the_core_and_ends(paths: Paths, server: socket.socket) -> None:
    run = start_handler(paths, SHORT)
    with wait_for(server) as connection:
        assert select.select([connection], [], [], 10)[0]
        handoff = connection.receive()
        assert handoff is not None
        assert connection.send_receipt()
    assert run.wait() == 0
    assert handoff.fields["e"] == b"prog"
    os.write(run.write_fd, b"still open: the process is held until we close")
    assert os.read(handoff.core, 5) == b"still"
    handoff.close()
    with pytest.raises(BrokenPipeError):
        os.write(run.write_fd, b"x")
    run.end()
    assert spool.ready_names(paths, 0) == []


REGISTERED: list[str | bytes] = [
    "7",
    b"n\xffme",
    "11",
    "1800000000",
    "{pid}",
    "{pid}",
    "0",
    "0",
    "9",
    "1",
    "3",
    "h",
]
"""As the kernel gives the pattern that crashd registers; `{pid}` is to be put in."""


def dumping(*arguments: str | bytes) -> list[str | bytes]:
    return [a.replace("{pid}", str(os.getpid())) if isinstance(a, str) else a for a in arguments]


def test_registered_pattern_gives_every_field_and_the_pidfd(
    paths: Paths, server: socket.socket
) -> None:
    pidfd = os.pidfd_open(os.getpid())
    run = start_handler(paths, dumping(*REGISTERED), pidfd=pidfd)
    os.close(pidfd)
    with wait_for(server) as connection:
        assert select.select([connection], [], [], 10)[0]
        handoff = connection.receive()
        assert handoff is not None
        assert connection.send_receipt()
    assert run.wait() == 0
    pid = str(os.getpid()).encode()
    rest = {key: handoff.fields.pop(key) for key in ("token", "seen_ns", "boottime_ns")}
    assert all(rest.values())
    assert handoff.fields == {
        **{"p": b"7", "e": b"n\xffme", "s": b"11", "t": b"1800000000", "P": pid, "I": pid},
        **{"u": b"0", "g": b"0", "c": b"9", "d": b"1", "F": b"3", "h": b"h"},
        **{"argc": b"12", "identity": b"kernel"},
    }
    assert handoff.pidfd is not None and pidfd_pid(handoff.pidfd) == os.getpid()
    meta = CoreMeta.from_fields({**handoff.fields, **rest}, 1)
    assert meta.malformed == ()
    handoff.close()
    run.end()


def test_values_are_cut_where_the_daemon_would_not_take_them(
    paths: Paths, server: socket.socket
) -> None:
    run = start_handler(paths, dumping(*(["x" * 9000] * 4), "{pid}", *(["y" * 5000] * 7)))
    with wait_for(server) as connection:
        assert select.select([connection], [], [], 10)[0]
        handoff = connection.receive()
        assert handoff is not None
        assert connection.send_receipt()
    assert run.wait() == 0
    assert {len(handoff.fields[key]) for key in "pestIugcdFh"} == {4096}
    assert handoff.pidfd is None  # this process is not dumping core
    handoff.close()
    run.end()


def test_crash_offered_in_vain_is_spooled_under_the_name_that_the_daemon_heard(
    paths: Paths, server: socket.socket
) -> None:
    run = start_handler(paths, dumping(*REGISTERED))
    with wait_for(server) as connection:
        assert select.select([connection], [], [], 10)[0]
        handoff = connection.receive()
        assert handoff is not None
        handoff.close()
    run.feed(CORE)
    assert run.wait() == 0
    assert not select.select([server], [], [], 0)[0], "the crash was offered twice"
    with the_spooled(paths) as entry:
        for key in ("token", "seen_ns", "boottime_ns"):
            assert entry.fields()[key] == handoff.fields[key]


def test_daemon_that_hangs_up_makes_the_handler_spool_at_once(
    paths: Paths, server: socket.socket
) -> None:
    run = start_handler(paths, SHORT)
    with wait_for(server):
        pass
    run.feed(CORE)
    assert run.wait() == 0
    the_spooled(paths).close()


def test_receipt_after_the_handler_gave_up_fails_so_that_one_side_has_it(
    paths: Paths, server: socket.socket
) -> None:
    run = start_handler(paths, SHORT)
    with wait_for(server) as connection:
        assert select.select([connection], [], [], 10)[0]
        handoff = connection.receive()  # and no receipt for longer than the handler waits
        assert handoff is not None
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLHUP | select.POLLRDHUP)
        assert poll.poll(10_000)
        assert not connection.send_receipt()
        handoff.close()
    run.feed(CORE)
    assert run.wait() == 0
    with the_spooled(paths) as entry:
        fd = entry.open_core()
        assert fd is not None
        assert read_all(fd) == CORE


def test_wrong_answer_is_no_receipt(paths: Paths, server: socket.socket) -> None:
    run = start_handler(paths, SHORT)
    assert select.select([server], [], [], 10)[0]
    peer, _ = server.accept()
    peer.send(b"no")
    peer.close()
    run.feed(CORE)
    assert run.wait() == 0
    the_spooled(paths).close()


@pytest.mark.parametrize("arguments", [SHORT, None], ids=["short", "registered"])
def test_handler_that_is_queued_waits_longer_than_for_a_first_answer(
    paths: Paths, server: socket.socket, arguments: list[str] | None
) -> None:
    run = start_handler(paths, arguments or dumping(*REGISTERED))
    with wait_for(server) as connection:
        assert select.select([connection], [], [], 10)[0]
        handoff = connection.receive()
        assert handoff is not None
        connection.send_queued()
        time.sleep(RECEIPT_SECONDS + 1)
        assert os.waitpid(run.pid, os.WNOHANG) == (0, 0), "it gave up a daemon that is only busy"
        assert connection.send_receipt()
    assert run.wait() == 0
    assert spool.ready_names(paths, 0) == []
    handoff.close()
    run.end()


@pytest.mark.parametrize("arguments", [SHORT, None], ids=["short", "registered"])
@pytest.mark.parametrize("then", [b"", b"Q", b"x"], ids=["dies", "is queued again", "nonsense"])
def test_handler_that_is_queued_by_a_daemon_that_then_dies_spools_at_once(
    paths: Paths, server: socket.socket, arguments: list[str] | None, then: bytes
) -> None:
    run = start_handler(paths, arguments or dumping(*REGISTERED))
    with wait_for(server) as connection:
        assert select.select([connection], [], [], 10)[0]
        handoff = connection.receive()
        assert handoff is not None
        connection.send_queued()
        if then:
            os.write(connection.fileno(), then)
        handoff.close()
    began = time.monotonic()
    run.feed(CORE)
    assert run.wait() == 0
    assert time.monotonic() - began < 10
    with the_spooled(paths) as entry:
        fd = entry.open_core()
        assert fd is not None
        assert read_all(fd) == CORE


def test_limits_of_the_daemon_are_kept_while_it_is_away(paths: Paths) -> None:
    spool.write_limits(paths, max_core=2 << 20, keep_free=0, honour_rlimit=True)
    run = start_handler(paths, SHORT)
    run.feed(DENSE)
    assert run.wait() == 0
    with the_spooled(paths) as entry:
        assert entry.ending() == "size limit"
        fd = entry.open_core()
        assert fd is not None
        kept = read_all(fd)
    # zeros do not count
    assert DENSE.startswith(kept)
    assert (2 << 20) - 4096 <= len(kept) - (4 << 20) <= (2 << 20) + 4096


def test_core_of_zeros_is_not_cut(paths: Paths) -> None:
    spool.write_limits(paths, max_core=1 << 20, keep_free=0, honour_rlimit=True)
    run = start_handler(paths, SHORT)
    run.feed(CORE)
    assert run.wait() == 0
    with the_spooled(paths) as entry:
        assert entry.ending() is None


def test_rlimit_core_of_the_process_is_honoured_but_for_the_notes(paths: Paths) -> None:
    run = start_handler(paths, [*SHORT, "", "", "0", "0", "0", "1", "", "h"])
    run.feed(DENSE)
    assert run.wait() == 0
    with the_spooled(paths) as entry:
        fd = entry.open_core()
        assert fd is not None
        assert os.fstat(fd).st_blocks * 512 <= (1 << 20) + 8192


# -- by memory -------------------------------------------------------------------------------------

LARGE = (os.urandom(1 << 20) + bytes(1 << 20)) * 10
"""Longer than LARGE_BYTES of the handler."""


def with_program(paths: Paths, script: str) -> Path:
    """Name a program to the handler; return where its arguments will be."""
    program = paths.root / "program"
    said = paths.root / "arguments"
    program.write_text(f'#!/bin/sh\necho "$@" >{said}\n{script}\n')
    program.chmod(0o755)
    spool.write_limits(paths, max_core=None, keep_free=0, honour_rlimit=False, program=program)
    return said


def spool_large(paths: Paths, core: bytes = LARGE) -> tuple[bytes, dict[str, bytes]]:
    """Have a large core spooled whose process the handler knows; return it, and how it ended."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        pid = str(os.getpid())
        rest = [pid, pid, "0", "0", str(1 << 63), "1", "3", "h"]
        run = start_handler(paths, [*SHORT, *rest], pidfd=pidfd)
        run.feed(core)
        assert run.wait() == 0
    finally:
        os.close(pidfd)
    with the_spooled(paths) as entry:
        fd = entry.open_core()
        assert fd is not None
        found = read_all(fd)
    (done,) = paths.spool.glob("*/done")
    return found, parse_fields(done.read_bytes())


def test_large_core_is_left_to_the_program_that_the_daemon_named(paths: Paths) -> None:
    script = "printf whole | dd of=/proc/self/fd/$5/core bs=1 seek=17M conv=notrunc 2>/dev/null"
    said = with_program(paths, f"{script}; printf '30000000 '")
    core, done = spool_large(paths)
    assert len(core) == 30_000_000 and core[17 << 20 :].startswith(b"whole")
    assert core[: 16 << 20] == LARGE[: 16 << 20]
    assert (done["received"], done["reason"], done["engine"]) == (b"30000000", b"", b"memory")
    words = said.read_text().split()
    assert words[:3] == ["-I", "-m", MEMORY_MODULE]
    assert len(words) == 9 and all(word.isdigit() for word in words[4:])


def test_reason_of_the_program_is_kept(paths: Paths) -> None:
    with_program(paths, "printf '20000000 size limit'")
    _, done = spool_large(paths)
    assert done["reason"] == b"size limit"


@pytest.mark.parametrize(
    "script",
    [
        "exit 3",
        "printf '99999999 '; exit 1",
        "kill -9 $$",
        "printf 'nonsense'",
        "printf -- '-5 '",
        "yes | head -c 100000",
        "printf junk | dd of=/proc/self/fd/$5/core bs=1 seek=30M conv=notrunc 2>/dev/null; exit 2",
    ],
)
def test_program_that_fails_costs_nothing_of_the_core(paths: Paths, script: str) -> None:
    with_program(paths, script)
    core, done = spool_large(paths)
    assert core == LARGE
    assert (done["reason"], done["engine"]) == (b"", b"stream")


@pytest.mark.parametrize("program", ["/nonexistent/python", "relative", "", "/dev/null", "/tmp"])
def test_program_that_cannot_be_started_costs_nothing(paths: Paths, program: str) -> None:
    spool.write_limits(
        paths, max_core=None, keep_free=0, honour_rlimit=False, program=Path(program)
    )
    assert spool_large(paths)[0] == LARGE


def test_program_is_not_started_for_what_is_small_or_has_no_pidfd(paths: Paths) -> None:
    said = with_program(paths, "exit 3")
    run = start_handler(paths, SHORT)
    run.feed(LARGE)
    assert run.wait() == 0
    the_spooled(paths).close()
    shutil.rmtree(next(paths.spool.glob("[0-9]*")))
    assert spool_large(paths, LARGE[: 16 << 20])[0] == LARGE[: 16 << 20]
    assert not said.exists()


def test_real_program_leaves_a_process_that_is_not_held_to_the_stream(paths: Paths) -> None:
    spool.write_limits(
        paths, max_core=None, keep_free=0, honour_rlimit=False, program=Path(sys.executable)
    )
    large = build_core(segments=[CoreSegment(0x400000, b"\1" * (18 << 20))])
    core, done = spool_large(paths, large)
    assert core == large
    assert done["engine"] == b"stream"


def test_store_that_cannot_be_written_loses_with_a_status_not_a_hang(paths: Paths) -> None:
    for directory in (paths.spool, paths.crashes):
        directory.rmdir()
    (paths.state_dir / "previous-core-pattern").touch()
    for left in paths.state_dir.iterdir():
        left.unlink()
    paths.state_dir.rmdir()
    paths.state_dir.write_text("a file in the way")
    run = start_handler(paths, SHORT)
    run.feed(CORE)
    assert run.wait() == 1
