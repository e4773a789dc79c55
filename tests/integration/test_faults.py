"""Faults in the daemon's way, injected into the real one: stopped, starved, lied to, damaged."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.corehandler import QUEUED, pack
from crashd.daemon.indexer import Indexer
from crashd.domain.crash.model import Crash, Kind, State
from crashd.edge.web.exporter import Exporter
from crashd.store import entry as entries
from crashd.store import spool
from crashd.store.catalog import Catalog
from crashd.store.check import verify
from crashd.store.entry import prepare
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.audience import Heard
from tests.builders.crashes import build_crash
from tests.builders.elfcore import CoreSegment, build_core
from tests.integration.handler import HandlerRun, start_handler
from tests.integration.test_daemon import CORE, SHORT, children, crash, descriptors, metric
from tests.running import DEFAULT_CONFIG, Daemon, wait_until

TOTAL = 'crashd_crashes_total{disposition="full",kind="process"}'


@pytest.fixture
def daemon(short_tmp: Path) -> Iterator[Daemon]:
    with Daemon(short_tmp, "--no-register") as running:
        install_handler(running.paths)
        yield running


def feed_all(runs: list[HandlerRun]) -> list[threading.Thread]:
    threads = [threading.Thread(target=run.feed, args=(CORE,)) for run in runs]
    for thread in threads:
        thread.start()
    return threads


def workers(daemon: Daemon) -> list[int]:
    return [c for nursery in children(daemon.pid) for c in children(nursery)]


def holds(pid: int, pipe: str) -> bool:
    """Tell whether a process has a pipe's end: the kernel would hold the crashed process for it."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd) == pipe:
                return True
    return False


@pytest.mark.parametrize("locked", [False, True])
def test_daemon_stopped_while_the_handlers_give_up_records_each_crash_once(
    daemon: Daemon, locked: bool
) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)
    runs = [start_handler(daemon.paths, SHORT) for _ in range(8)]
    feed_all(runs)
    with contextlib.closing(sqlite3.connect(daemon.paths.index, isolation_level=None)) as db:
        try:
            assert [run.wait() for run in runs] == [0] * 8
            if locked:  # the index is behind, as when crashctl reindex writes
                db.execute("BEGIN IMMEDIATE")
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        if locked:
            wait_until(lambda: len(os.listdir(daemon.paths.crashes)) >= 8, 30, "recorded")
            time.sleep(1)
            db.execute("ROLLBACK")
    daemon.wait_for(8)
    wait_until(
        lambda: not [n for n in os.listdir(daemon.paths.spool) if n[0].isdigit()], 20, "imported"
    )
    crash(daemon)
    found = daemon.wait_for(9)
    assert len(found) == 9
    assert {c["state"] for c in found} == {"complete"}
    assert metric(daemon, TOTAL) == 9
    daemon.stop()
    daemon.start()
    daemon.crashctl("verify")
    assert len(daemon.wait_for(9)) == 9


def count_piped(daemon: Daemon) -> int:
    """Count the crashes that a handler handed over."""
    return sum(crash["capture"]["mode"] == "pipe" for crash in daemon.crashes())


def test_fault_28_no_descriptors_left_costs_no_crash_and_not_the_daemon(daemon: Daemon) -> None:
    before = descriptors(daemon.pid)
    hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[1]
    for room in range(8):
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (before + room, hard))
        crash(daemon)
        assert daemon.process is not None
        assert daemon.process.poll() is None, daemon.log.read_text()[-3000:]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
    crashes, piped = 8, count_piped(daemon)

    def is_listened_to() -> bool:
        """Crash once more: a handler that meets a daemon still without descriptors spools."""
        nonlocal crashes
        crash(daemon)
        crashes += 1
        time.sleep(1)
        return count_piped(daemon) > piped

    wait_until(is_listened_to, 20, "handlers are listened to again")
    daemon.stop()
    daemon.start()
    found = daemon.wait_for(crashes)
    assert len(found) == crashes
    assert {c["state"] for c in found} == {"complete"}
    daemon.crashctl("verify")


def hand_over(daemon: Daemon, fields: dict[str, bytes]) -> bytes:
    """Hand over a crash of our own making; return the daemon's last answer."""
    read_fd, write_fd = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(10)
        peer.connect(str(daemon.paths.handoff_socket))
        socket.send_fds(peer, [pack(fields)], [read_fd])
        os.close(read_fd)
        os.close(write_fd)
        assert peer.recv(1) == QUEUED
        return peer.recv(1)


@pytest.mark.parametrize("key", ["t", "seen_ns"])
def test_times_past_the_end_of_time_do_no_harm(daemon: Daemon, key: str) -> None:
    value = {"t": b"%d" % (1 << 40), "seen_ns": b"%d" % ((1 << 64) - 1)}[key]
    assert hand_over(daemon, {"token": b"a-b-c", "p": b"1", key: value}) == b"R"
    crash(daemon)
    assert len(daemon.wait_for(2)) == 2
    assert "Traceback" not in daemon.log.read_text()


def test_crash_that_waits_in_vain_is_let_go_when_its_handler_has_it(short_tmp: Path) -> None:
    """The only worker is taken, and the nursery that would fork another one hangs."""
    config = DEFAULT_CONFIG + "[capture]\nworkers = 1\n"
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        install_handler(daemon.paths)
        (nursery,) = children(daemon.pid)
        os.kill(nursery, signal.SIGSTOP)
        slow = start_handler(daemon.paths, SHORT)
        assert slow.wait() == 0
        waiting = start_handler(daemon.paths, SHORT)
        pipe = os.readlink(f"/proc/self/fd/{waiting.write_fd}")
        wait_until(lambda: holds(daemon.pid, pipe), 20, "it waits in the queue")
        waiting.feed(CORE)
        assert waiting.wait() == 0
        wait_until(lambda: not holds(daemon.pid, pipe), 2, "the crashed process is let go")
        slow.feed(CORE)
        os.kill(nursery, signal.SIGCONT)
        found = daemon.wait_for(2)
        assert len(found) == 2
        assert {c["capture"]["mode"] for c in found} == {"pipe", "spool"}


def test_crash_beside_a_slow_one_waits_for_no_worker(short_tmp: Path) -> None:
    config = DEFAULT_CONFIG + "[capture]\nworkers = 1\n"
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        install_handler(daemon.paths)
        slow = [start_handler(daemon.paths, SHORT) for _ in range(4)]
        assert [run.wait() for run in slow] == [0] * 4, "all have a worker, which waits for cores"
        crash(daemon, 1)
        wait_until(lambda: any(c["state"] == "complete" for c in daemon.seen()), 20, "it is in")
        for run in slow:
            run.feed(CORE)
        assert {c["capture"]["mode"] for c in daemon.wait_for(5)} == {"pipe"}


def test_fault_05_index_damaged_within_is_rebuilt_at_the_start(daemon: Daemon) -> None:
    crash(daemon, 8)
    before = sorted(c["id"] for c in daemon.wait_for(8))
    daemon.stop()
    size = daemon.paths.index.stat().st_size
    with daemon.paths.index.open("r+b") as file:
        for page in range(2, size // 4096):
            file.seek(page * 4096 + 200)
            file.write(b"\xff" * 3500)
    daemon.start()
    assert sorted(c["id"] for c in daemon.wait_for(8)) == before
    daemon.crashctl("verify", "--deep")


def test_fault_05_index_damaged_while_it_runs_costs_no_crash(daemon: Daemon) -> None:
    crash(daemon, 4)
    daemon.wait_for(4)
    with contextlib.closing(sqlite3.connect(daemon.paths.index)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with daemon.paths.index.open("r+b") as file:
        for page in range(1, daemon.paths.index.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    crash(daemon, 2)
    wait_until(lambda: metric(daemon, TOTAL) == 6, 20, "both are counted in a new index")
    found = daemon.wait_for(6)
    assert {c["state"] for c in found} == {"complete"}
    assert metric(daemon, TOTAL) == 6


@pytest.mark.parametrize("gone", ["spool", "crashes"])
def test_store_that_vanishes_during_a_reload_does_not_end_the_daemon(
    daemon: Daemon, gone: str
) -> None:
    directory = getattr(daemon.paths, gone)
    aside = daemon.paths.root / "aside"
    directory.rename(aside)
    position = daemon.log.stat().st_size
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: daemon.log.stat().st_size > position, 30, "the reload is over")
    aside.rename(directory)
    crash(daemon)
    assert len(daemon.wait_for(1)) == 1


def test_fault_29_nursery_that_hangs_does_not_hang_the_daemon(daemon: Daemon) -> None:
    (nursery,) = children(daemon.pid)
    os.kill(nursery, signal.SIGSTOP)
    try:
        for worker in workers(daemon)[:-1]:
            os.kill(worker, signal.SIGKILL)
        begin = time.monotonic()
        crash(daemon, 2)
        assert len(daemon.wait_for(2)) == 2
        assert time.monotonic() - begin < 15
    finally:
        os.kill(nursery, signal.SIGCONT)


def test_fault_06_clock_that_jumps_while_a_handler_spools_is_no_matter(daemon: Daemon) -> None:
    daemon.stop()
    run = start_handler(daemon.paths, SHORT)
    wait_until(lambda: bool(list(daemon.paths.spool.glob("*.tmp"))), 20, "the handler spools")
    (name,) = [p.name for p in daemon.paths.spool.glob("*.tmp")]
    for seconds in (-10_000, 10_000):
        assert spool.ready_names(daemon.paths, time.time_ns() + seconds * 10**9) == [], name
    run.feed(CORE)
    assert run.wait() == 0


def test_fault_03_handler_leaves_the_free_space_that_it_must(daemon: Daemon) -> None:
    daemon.stop()
    spool.write_limits(daemon.paths, max_core=None, keep_free=1 << 60, honour_rlimit=True)
    run = start_handler(daemon.paths, SHORT)
    run.feed(os.urandom(20 << 20))
    assert run.wait() == 0
    (name,) = spool.ready_names(daemon.paths, 0)
    with spool.SpoolEntry.open(daemon.paths, name) as entry:
        assert entry.ending() == "disk nearly full"
    assert (daemon.paths.spool / name / "core").stat().st_size == 0, "there must be room to record"


def test_fault_03_handler_keeps_the_head_where_space_is_only_short(daemon: Daemon) -> None:
    daemon.stop()
    disk = os.statvfs(daemon.paths.spool)
    short = disk.f_bavail * disk.f_frsize * 3 // 2
    spool.write_limits(daemon.paths, max_core=None, keep_free=short, honour_rlimit=True)
    run = start_handler(daemon.paths, SHORT)
    run.feed(os.urandom(20 << 20))
    assert run.wait() == 0
    (name,) = spool.ready_names(daemon.paths, 0)
    with spool.SpoolEntry.open(daemon.paths, name) as entry:
        assert entry.ending() == "disk nearly full"
    assert 0 < (daemon.paths.spool / name / "core").stat().st_size < 4 << 20


def test_counters_after_a_kill_are_those_of_the_index(daemon: Daemon) -> None:
    crash(daemon, 3)
    daemon.wait_for(3)
    daemon.stop()
    daemon.paths.index.unlink()
    daemon.start()
    daemon.wait_for(3)
    wait_until(lambda: metric(daemon, TOTAL) == 3, 20, "counted")


def test_fault_09_handler_that_dies_while_it_waits_leaves_a_finished_record(
    short_tmp: Path,
) -> None:
    config = DEFAULT_CONFIG + "[capture]\nworkers = 1\n"
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        install_handler(daemon.paths)
        slow = start_handler(daemon.paths, SHORT)
        assert slow.wait() == 0
        dying = start_handler(daemon.paths, SHORT)
        wait_until(lambda: len(daemon.seen()) == 2, 20, "recorded")
        os.kill(dying.pid, signal.SIGKILL)
        dying.wait()
        dying.end()
        slow.feed(CORE)
        found = daemon.wait_for(2)
        assert sorted(c["state"] for c in found) == ["complete", "lost"]
        assert json.loads(daemon.crashctl("info", found[0]["id"], "--json").stdout)


def test_pool_that_is_gone_ends_the_daemon_to_be_started_anew(daemon: Daemon) -> None:
    assert daemon.process is not None
    everyone = [*children(daemon.pid), *workers(daemon)]
    for pid in everyone:
        os.kill(pid, signal.SIGKILL)
    assert daemon.process.wait(20) == 1
    assert "Traceback" not in daemon.log.read_text()
    crash(daemon)
    daemon.start()
    (found,) = daemon.wait_for(1)
    assert (found["state"], found["capture"]["mode"]) == ("complete", "spool")


def holds_partial(pid: int) -> bool:
    """Whether a worker has a core open that is not whole yet."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).endswith("core.zst.partial"):
                return True
    return False


def test_spooled_crash_that_workers_die_of_is_kept_whole(short_tmp: Path) -> None:
    config = DEFAULT_CONFIG + "[capture]\nworkers = 1\n"
    daemon = Daemon(short_tmp, "--no-register", config=config)
    prepare(daemon.paths)
    install_handler(daemon.paths)
    size = 256 << 20
    core = build_core(segments=[CoreSegment(0x400000, os.urandom(size))])
    run = start_handler(daemon.paths, SHORT)
    run.feed(core)
    assert run.wait() == 0
    with daemon:
        killed: set[int] = set()

        def kill_importers() -> bool:
            for worker in set(workers(daemon)) - killed:
                if len(killed) < 2 and holds_partial(worker):
                    os.kill(worker, signal.SIGKILL)
                    killed.add(worker)
            return bool(list(daemon.paths.spool.glob("*.bad")))

        wait_until(kill_importers, 60, "what workers die of is set aside")
        (found,) = daemon.wait_for(1)
        assert found["state"] in ("truncated", "lost")
        (bad,) = daemon.paths.spool.glob("*.bad")
        assert (bad / "core").read_bytes() == core
        crash(daemon)
        daemon.wait_for(2)


def test_sockets_that_make_no_sense_are_one_line_and_status_4(short_tmp: Path) -> None:
    pair = socket.socketpair()
    for end in pair:
        end.set_inheritable(True)
    program = (
        "import os, sys; first, second, root = sys.argv[1:];"
        "os.dup2(int(first), 3); os.dup2(int(second), 4);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='a:a');"
        "os.execv(sys.executable, [sys.executable, '-m', 'crashd', 'run', '--no-register',"
        " '--root', root])"
    )
    numbers = [str(end.fileno()) for end in pair]
    done = subprocess.run(
        [sys.executable, "-c", program, *numbers, str(short_tmp)],
        pass_fds=[end.fileno() for end in pair],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    for end in pair:
        end.close()
    assert done.returncode == 4, done.stderr
    assert "systemd passed two sockets named 'a'" in done.stderr
    assert "Traceback" not in done.stderr


def test_crash_that_is_found_finished_twice_is_counted_and_shown_once(short_tmp: Path) -> None:
    paths = Paths(short_tmp)
    prepare(paths)
    heard = Heard()
    indexer = Indexer(paths, Exporter("0"))
    first = Crash(
        "20261123t050209-0123abcd-42-k0000001", Kind.PROCESS, State.CAPTURING, 1, "0123abcd" * 4
    )
    with entries.create(paths, first) as entry:
        indexer.recorded(first)
        entry.write(replace(first, state=State.LOST), sync=False)
        indexer.finished(first.id)
        indexer.reconcile()
        indexer.finished(first.id)  # by Ingest.recover(), with what it was told before
    indexer.start(heard)
    indexer.stop()
    again = Indexer(paths, Exporter("0"))
    again.finished(first.id)
    again.start(heard)
    again.stop()
    assert heard.shown == [first.id]


def test_signature_is_new_once_even_after_its_crashes_are_gone(short_tmp: Path) -> None:
    """An alert on the number of signatures missed those that retention made room for."""
    paths = Paths(short_tmp)
    prepare(paths)
    exporter = Exporter("0", clock=lambda: 5.0)
    indexer = Indexer(paths, exporter)
    crashes = [
        replace(build_crash(number), signature=signature)
        for number, signature in enumerate(("one", "one", "two", None, "one"))
    ]
    for crash_ in crashes:
        with entries.create(paths, crash_) as entry:
            entry.write(crash_, sync=False)
    indexer.start(Heard())
    try:
        for number, crash_ in enumerate(crashes):
            indexer.explained(crash_)
            assert indexer.settle()
            if number == 1:
                for gone in crashes[:2]:
                    shutil.rmtree(paths.crashes / gone.id)
                    indexer.removed(gone.id)
                assert indexer.settle()
    finally:
        indexer.stop()
    lines = exporter.render("")[0].decode().splitlines()
    assert "crashd_new_signatures_total 2.0" in lines
    assert "crashd_signatures 2.0" in lines
    assert "crashd_last_new_signature_timestamp_seconds 5.0" in lines


def test_spooled_crashes_are_taken_in_whole_where_free_space_is_short(short_tmp: Path) -> None:
    """The space that is short may be what the spool itself takes: to wait for it was for ever."""
    with Daemon(short_tmp, "--no-register") as daemon:
        install_handler(daemon.paths)
    for _ in range(3):
        run = start_handler(daemon.paths, SHORT)
        run.feed(CORE)
        assert run.wait() == 0
    daemon.paths.config_file.write_text(
        DEFAULT_CONFIG + '[retention.process]\nkeep_free = "100%"\n'
    )
    with daemon:
        daemon.wait_for(3)
        wait_until(lambda: not spool.ready_names(daemon.paths, time.time_ns()), 30, "all are in")
    assert daemon.log.read_text().count("), complete, core ") == 3, "retention may act only then"


def test_row_is_made_of_the_record_as_it_is_by_then(short_tmp: Path) -> None:
    """Who pins or deletes a crash while the index has not caught up has the last word."""
    paths = Paths(short_tmp)
    prepare(paths)
    crashes = [build_crash(number) for number in range(3)]
    for crash_ in crashes:
        with entries.create(paths, crash_) as entry:
            entry.write(crash_, sync=False)
    indexer = Indexer(paths, Exporter("0"))
    for crash_ in crashes:
        indexer.changed(replace(crash_, title="analysed"))
    with Index.open(paths.index) as index:
        index.put(crashes)
        catalog = Catalog(paths, index)
        catalog.set_pinned([crashes[0].id], True)
        catalog.delete([crashes[1].id])
        indexer.start(Heard())
        indexer.stop()
        assert index.ids() == [crashes[0].id, crashes[2].id]
        assert {found.kind for found in verify(paths, index)} == {"no-core"}
