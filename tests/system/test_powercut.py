"""Power is lost: what was said to be kept is there afterwards, whole, and the rest is put right.

ext4 is shut down under the store in the midst of the work (EXT4_IOC_SHUTDOWN without a flush of its
log, since Linux 4.10; xfstests cuts the power in the same way): nothing that was not synced reaches
the disk.
"""

import fcntl
import os
import random
import re
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crashd.store import spool
from crashd.store.entry import prepare
from crashd.store.handlerfile import install_handler
from crashd.store.paths import Paths
from tests.builders.elfcore import CoreSegment, build_core
from tests.integration.handler import HandlerRun, start_handler
from tests.running import KEEPING_CONFIG, Daemon, wait_until

EXT4_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32), linux/fs/ext4/ext4.h."""
NO_LOG_FLUSH = 2
ROUNDS = 12
CONFIG = KEEPING_CONFIG + 'max_use = "250M"\n'
CORE = build_core(segments=[CoreSegment(0x400000, random.Random(13).randbytes(20_000))])
NOTED = "prog"
"""The name in the core's own note."""


class Disk:
    """An ext4 on a block device, mounted for the state directory, whose power can be cut."""

    def __init__(self, device: str, point: Path) -> None:
        self.device, self.point = device, point

    def plug(self) -> None:
        subprocess.run(["mount", self.device, self.point], check=True)

    def cut(self) -> None:
        """Let nothing more reach the disk. The file system has to be unmounted after it."""
        fd = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unplug(self) -> None:
        def unmounted() -> bool:
            return subprocess.run(["umount", self.point], capture_output=True).returncode == 0

        wait_until(unmounted, 30, "nobody uses the disk any more")
        # another namespace may have a copy of the mount: then it would still be the one shut down
        wait_until(self._is_free, 60, "it is mounted nowhere")

    def _is_free(self) -> bool:
        try:
            os.close(os.open(self.device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError:
            return False
        return True


@pytest.fixture
def disk(short_tmp: Path) -> Iterator[Disk]:
    image, point = short_tmp / "disk", Paths(short_tmp).state_dir
    point.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(300 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    found = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, check=True)
    disk = Disk(found.stdout.decode().strip(), point)
    try:
        disk.plug()
        yield disk
        subprocess.run(["umount", "-l", point], check=True)
    finally:
        subprocess.run(["losetup", "-d", disk.device], check=True)


def start_crash(paths: Paths, name: str) -> HandlerRun:
    return start_handler(paths, ["7", name, "11", "1800000000"])


def crash_until_told(paths: Paths, prefix: str, enough: threading.Event) -> list[str]:
    """Have one crash after the other, until it is enough; the names of those whose handler said 0
    before that.
    """
    kept = []
    for number in range(1000):
        if enough.is_set():
            break
        name = f"{prefix}.{number}"
        run = start_crash(paths, name)
        run.feed(CORE)
        if run.wait() == 0 and not enough.is_set():
            kept.append(name)
    return kept


def told_complete(daemon: Daemon) -> set[str]:
    """The ids of the crashes that the daemon's log has as complete: it writes that last."""
    return set(re.findall(r"crash (\d{8}t[\w-]+): .*, complete, core", daemon.log.read_text()))


def assert_all_is_whole(daemon: Daemon, ids: set[str], names: set[str]) -> None:
    wait_until(lambda: not spool.ready_names(daemon.paths, 0), 60, "the spool is taken in")
    wait_until(lambda: all(c["state"] != "capturing" for c in list_all(daemon)), 30, "all ended")
    rows = {row["id"]: row for row in list_all(daemon)}
    complete = {i for i, row in rows.items() if row["state"] == "complete"}
    assert ids <= complete, "what was said to be complete"
    # where all but the id is lost it has no name, or that of its core's own note
    found = [row["comm"] for row in rows.values() if row["comm"] not in ("", None, NOTED)]
    assert names <= {rows[i]["comm"] for i in complete}, "what was said to be spooled"
    twice = [row for row in rows.values() if found.count(row["comm"]) > 1]
    log = [x for x in daemon.log.read_text().splitlines() if any(r["id"] in x for r in twice)]
    assert not twice, f"no crash has two rows: {twice}, {log}"
    for crash_id in complete:
        with (daemon.paths.crashes / crash_id / "core.zst").open("rb") as file:
            assert zstandard.ZstdDecompressor().stream_reader(file).read(1 << 20) == CORE
    assert daemon.crashctl("verify", "--strict", "--deep").stdout == ""


def list_all(daemon: Daemon) -> list[dict[str, Any]]:
    return daemon.crashes("-n", "10000")


def test_fault_13_power_is_cut_while_the_daemon_works(short_tmp: Path, disk: Disk) -> None:
    dice = random.Random(20261124)
    daemon = Daemon(short_tmp, "--no-register", config=CONFIG)
    known: set[str] = set()
    for number in range(ROUNDS):
        daemon.start()
        install_handler(daemon.paths)
        enough = threading.Event()
        crashing = threading.Thread(
            target=crash_until_told, args=(daemon.paths, f"d{number}", enough)
        )
        crashing.start()
        time.sleep(dice.uniform(0.2, 1.2))
        known |= told_complete(daemon)
        disk.cut()
        enough.set()
        daemon.stop(signal.SIGKILL)
        crashing.join()
        disk.unplug()
        disk.plug()
    assert len(known) > 3 * ROUNDS, "there was something to lose"
    with daemon:
        assert_all_is_whole(daemon, known, set())
    assert "Traceback" not in daemon.log.read_text()


def test_fault_13_power_is_cut_while_the_handler_spools(short_tmp: Path, disk: Disk) -> None:
    dice = random.Random(20261124)
    daemon = Daemon(short_tmp, "--no-register", config=CONFIG)
    daemon.paths.runtime_dir.mkdir(parents=True)
    prepare(daemon.paths)
    install_handler(daemon.paths)
    kept: list[str] = []
    for number in range(ROUNDS):
        enough = threading.Event()
        names: list[str] = []

        def crash(number: int = number, enough: threading.Event = enough) -> None:
            names.extend(crash_until_told(daemon.paths, f"s{number}", enough))  # noqa: B023

        crashing = threading.Thread(target=crash)
        crashing.start()
        time.sleep(dice.uniform(0.1, 0.8))
        enough.set()
        disk.cut()
        crashing.join()
        disk.unplug()
        disk.plug()
        kept += names
    assert len(kept) > 2 * ROUNDS, "there was something to lose"
    with daemon:
        assert_all_is_whole(daemon, set(), set(kept))
    assert "Traceback" not in daemon.log.read_text()
