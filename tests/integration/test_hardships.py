"""Faults that come again and again, or all at once: killed at any byte, events lost, a reader that
never ends. The numbers are those of the table in SECURITY.md.
"""

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.daemon.indexer import Indexer
from crashd.edge.web.exporter import Exporter
from crashd.store import entry as entries
from crashd.store import spool
from crashd.store.entry import prepare
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from crashd.store.indexfile import WAL_ALARM_BYTES, WAL_BYTES, wal_bytes
from crashd.store.paths import Paths
from tests.builders.audience import Heard
from tests.builders.crashes import build_crash
from tests.builders.elfcore import CoreSegment, build_core
from tests.builders.kdumps import save
from tests.integration.handler import start_handler
from tests.integration.test_daemon import children, crash
from tests.running import DEFAULT_CONFIG, Daemon, wait_until

KEEPING = DEFAULT_CONFIG + '[retention.process]\nmax_per_signature = "infinity"\n'
WAL_MAX = 64 << 20


@pytest.fixture
def daemon(short_tmp: Path) -> Iterator[Daemon]:
    (short_tmp / "var/crash").mkdir(parents=True)
    with Daemon(short_tmp, "--no-register", config=KEEPING) as running:
        install_handler(running.paths)
        yield running


def write_some(fd: int, core: bytes) -> bool:
    """Write what a dead reader lets us; tell whether it was all."""
    view = memoryview(core)
    with contextlib.suppress(BrokenPipeError):
        while view:
            view = view[os.write(fd, view) :]
    return not view


def test_fault_02_killed_at_any_byte_200_times_leaves_whole_rows_or_none(daemon: Daemon) -> None:
    """The handler, a worker, the daemon: in the midst of a core, or at its very ends."""
    dice = random.Random(20261123)
    core = build_core(segments=[CoreSegment(0x400000, dice.randbytes(300_000))])
    whole = 0
    for number in range(200):
        victim = "daemon" if number % 50 == 49 else "worker" if number % 5 == 4 else "handler"
        at = dice.choice([0, len(core), dice.randrange(len(core)), dice.randrange(len(core))])
        run = start_handler(daemon.paths, ["7", f"n{number}", "11", f"{1_800_000_000 + number}"])
        write_some(run.write_fd, core[:at])
        time.sleep(dice.choice([0, 0.001, 0.005, 0.02]))
        if victim == "handler":
            os.kill(run.pid, signal.SIGKILL)
            run.end()
            assert run.wait() in (0, -signal.SIGKILL)
            continue
        if victim == "worker":
            for nursery in children(daemon.pid):
                for worker in children(nursery):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)
        else:
            daemon.stop(signal.SIGKILL)
        write_some(run.write_fd, core[at:])
        run.end()
        assert run.wait() == 0
        whole += 1
        if victim == "daemon":
            daemon.start()
    crash(daemon)
    wait_until(lambda: not spool.ready_names(daemon.paths, 0), 60, "the spool is empty")
    rows = daemon.wait_for(whole + 1, seconds=60)
    names = [row["comm"] for row in rows]
    assert len(set(names)) == len(names), "no crash has two rows"
    assert {f"n{n}" for n in range(200) if n % 5 == 4} <= set(names), "whose handler lived is there"
    assert {row["state"] for row in rows} <= {"complete", "truncated", "metadata-only", "lost"}
    assert daemon.crashctl("verify", "--strict").stdout == ""
    assert "Traceback" not in daemon.log.read_text()


def test_fault_14_overflow_of_events_loses_no_dump(daemon: Daemon, short_tmp: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}")
    dumps = short_tmp / "var/crash"
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        for number in range(limit // 2 + 100):
            (dumps / f"x{number}").mkdir()
            (dumps / f"x{number}").rmdir()
        save(dumps, "202601010101")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    wait_until(lambda: [c["state"] for c in daemon.seen()] == ["complete"], 30, "it is there")
    assert "Traceback" not in daemon.log.read_text()


def test_fault_18_equal_crashes_in_one_second_are_two(daemon: Daemon) -> None:
    """The same pid, name, signal and second: pids come again, and clocks stand still."""
    crash(daemon, 3)
    rows = daemon.wait_for(3)
    assert len({row["id"] for row in rows}) == 3
    assert len({(row["pid"], row["comm"], row["time"]) for row in rows}) == 1
    assert {row["state"] for row in rows} == {"complete"}


def test_fault_21_reader_that_never_ends_holds_up_no_crash(daemon: Daemon) -> None:
    crash(daemon, 1)
    daemon.wait_for(1)
    wal = daemon.paths.index.with_name(daemon.paths.index.name + "-wal")
    reading = sqlite3.connect(f"file:{daemon.paths.index}?mode=ro", uri=True, isolation_level=None)
    with contextlib.closing(reading):
        reading.execute("BEGIN")
        assert reading.execute("SELECT count(*) FROM crash").fetchone() == (1,)
        for _ in range(60):
            crash(daemon)
        daemon.wait_for(61)
        assert reading.execute("SELECT count(*) FROM crash").fetchone() == (1,)
        assert wal.stat().st_size < WAL_MAX
    daemon.crashctl("verify", "--strict")
    daemon.stop()
    assert not wal.exists() or wal.stat().st_size == 0, "what it held was written back"


def test_fault_21_wal_that_a_reader_holds_is_told_of_and_shrinks_after_him(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = Paths(short_tmp)
    prepare(paths)
    indexer = Indexer(paths, Exporter("0"))
    crash_ = build_crash(0)
    with entries.create(paths, crash_) as entry:
        entry.write(crash_, sync=False)
    indexer.start(Heard())
    try:
        indexer.recorded(crash_)
        assert indexer.settle()
        reading = sqlite3.connect(f"file:{paths.index}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(reading), Index.open(paths.index) as writing:
            reading.execute("BEGIN")
            assert reading.execute("SELECT count(*) FROM crash").fetchone() == (1,)
            number = 1
            while wal_bytes(paths.index) < WAL_ALARM_BYTES:
                writing.put(build_crash(n) for n in range(number, number + 500))
                number += 500
            assert "WAL" not in caplog.text
            for _ in range(2):
                indexer.changed(crash_)
                assert indexer.settle()
            assert reading.execute("SELECT count(*) FROM crash").fetchone() == (1,)
        assert caplog.text.count(f"a reader holds it open: fuser -v {paths.index}") == 1
        for _ in range(2):  # the first writes all back, the second begins the WAL again
            indexer.changed(crash_)
            assert indexer.settle()
        assert 0 < wal_bytes(paths.index) <= WAL_BYTES
    finally:
        indexer.stop()
