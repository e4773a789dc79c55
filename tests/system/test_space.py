"""Retention where space is really short: a file system of its own, filled by us and by others."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.domain.crash.model import Core, Crash, State
from crashd.store import entry as entries
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash
from tests.builders.elfcore import CoreSegment, build_core
from tests.integration.handler import start_handler
from tests.integration.test_daemon import SHORT
from tests.running import DEFAULT_CONFIG, Daemon, wait_until

MIB = 1 << 20
CORE_BYTES = 24 * MIB


@pytest.fixture
def small(short_tmp: Path) -> Iterator[Path]:
    """A root on a file system of 300 MiB."""
    root = short_tmp / "s"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=755", "tmpfs", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def fill(paths: Paths, count: int) -> list[Crash]:
    """Store crashes of one signature."""
    entries.prepare(paths)
    found = []
    with Index.open(paths.index) as index:
        for number in range(count):
            core = Core("core.zst", CORE_BYTES, CORE_BYTES, CORE_BYTES, CORE_BYTES, True)
            crash = build_crash(number, signature="p1-aa", sequence=number + 1)
            crash = replace(crash, state=State.COMPLETE, core=core)
            with entries.create(paths, crash) as entry:
                fd = entry.create_core()
                os.write(fd, b"c" * CORE_BYTES)
                os.close(fd)
                entry.commit_core()
                entry.write(crash, sync=False)
            index.put([crash])
            found.append(crash)
    return found


def start(root: Path) -> Daemon:
    config = DEFAULT_CONFIG + '[retention.process]\nmax_use = "infinity"\nkeep_free = "100M"\n'
    return Daemon(root, "--no-register", config=config)


def reasons(daemon: Daemon) -> list[str]:
    return [crash["evicted"]["reason"] for crash in daemon.crashes() if crash["evicted"]]


def test_room_is_made_while_a_core_comes_in_that_would_not_fit(small: Path) -> None:
    """Without it the core is cut: 180 MiB are free, 100 are to stay so, and it has 150."""
    old = fill(Paths(small), 5)
    with start(small) as daemon:
        install_handler(daemon.paths)
        wait_until(lambda: daemon.paths.pending_deletions.exists(), 30, "the first look")
        # the same user's: for another's no more goes than would be left of that one's own
        uid = str(old[0].uid)
        run = start_handler(daemon.paths, [*SHORT, "7", "7", uid, uid])
        run.feed(build_core(segments=[CoreSegment(0x400000, os.urandom(150 * MIB))]))
        assert run.wait() == 0
        found = {crash["id"]: crash for crash in daemon.wait_for(6)}
        (new,) = set(found) - {crash.id for crash in old}
        assert found[new]["state"] == "complete", found[new]["capture"]["reason"]
        assert set(reasons(daemon)) == {"keep_free"}
        assert found[old[-1].id]["state"] == "complete"  # the newest of its signature goes last


def test_space_that_others_take_is_given_back(small: Path) -> None:
    old = fill(Paths(small), 5)
    with start(small) as daemon:
        wait_until(lambda: daemon.paths.pending_deletions.exists(), 30, "the first look")
        assert reasons(daemon) == []
        with (small / "others").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 120 * MIB)
        wait_until(lambda: len(reasons(daemon)) >= 2, 60, "cores are deleted")
        fs = os.statvfs(small)
        assert fs.f_bavail * fs.f_frsize >= 100 * MIB
        kept = [c["id"] for c in daemon.crashes() if c["state"] == "complete"]
        assert old[-1].id in kept


def test_store_without_inodes_left_loses_records_before_cores(short_tmp: Path) -> None:
    root = short_tmp / "i"
    root.mkdir()
    options = "size=100m,nr_inodes=400,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", root], check=True)
    try:
        paths = Paths(root)
        entries.prepare(paths)
        with Index.open(paths.index) as index:
            for number in range(160):
                crash = build_crash(number, sequence=number + 1, signature=None)
                crash = replace(crash, state=State.METADATA_ONLY, core=Core())
                with entries.create(paths, crash) as entry:
                    entry.write(crash, sync=False)
                index.put([crash])
        config = DEFAULT_CONFIG + '[retention.process]\nkeep_free = "30%"\n'
        with Daemon(root, "--no-register", config=config) as daemon:
            wait_until(lambda: os.statvfs(root).f_favail >= 120, 20, "inodes are given back")
            assert 60 < len(daemon.crashes()) < 160
    finally:
        subprocess.run(["umount", "-l", root], check=True)
