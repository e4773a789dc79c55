"""ENOSPC at every write point: each call of daemon and workers that changes a file of the state
directory fails in its turn, once, or with all that follow it for the length of a crash.
"""

import mmap
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.store.handlerfile import install_handler
from tests.builders.elfcore import CoreSegment, build_core
from tests.integration.handler import start_handler
from tests.running import DEFAULT_CONFIG, Daemon

SOURCE = Path(__file__).parents[1] / "system/programs/failing.c"
CORE = build_core(segments=[CoreSegment(0x400000, os.urandom(100_000))])
KEEPING = DEFAULT_CONFIG + '[retention.process]\nmax_per_signature = "infinity"\n'
POINTS_MAX = 150
LASTING_MAX = 60
"""What failed for a while is made up for by the next crash, in more writes than one has."""
QUIET_SECONDS = 0.08


class Failing:
    """What fails next; shared with the daemon and all its workers."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "failing.so"
        self._state = directory / "failing.state"
        flags = ["-shared", "-fPIC", "-O1"]
        subprocess.run(["gcc", *flags, "-o", self._library, SOURCE, "-ldl"], check=True)
        self._state.write_bytes(bytes(4096))
        with self._state.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)

    def environ(self, below: Path) -> dict[str, str]:
        """Give what makes a program fail so."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAILING_STATE": str(self._state),
            "FAILING_BELOW": str(below),
        }

    def arm(self, number: int, *, lasting: bool) -> None:
        """Have the call of that number from now on fail, and all after it where it is lasting."""
        self._map[:16] = struct.pack("=4i", number, lasting, 0, 0)

    def disarm(self) -> int:
        """Have all succeed again; tell how many failed."""
        failed = self._read(2)
        self._map[:16] = bytes(16)
        return failed

    def wait_quiet(self) -> None:
        """Wait until nothing is written any more."""
        before, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < QUIET_SECONDS:
            if (calls := self._read(3)) != before:
                before, since_s = calls, time.monotonic()
            time.sleep(0.01)

    def _read(self, index: int) -> int:
        return int(struct.unpack_from("=i", self._map, 4 * index)[0])


@pytest.fixture
def failing(short_tmp: Path) -> Failing:
    return Failing(short_tmp)


@pytest.fixture
def daemon(short_tmp: Path, failing: Failing) -> Iterator[Daemon]:
    running = Daemon(short_tmp / "r", "--no-register", config=KEEPING)
    running.start(failing.environ(running.paths.state_dir))
    install_handler(running.paths)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_fault_03_no_space_at_any_write_point_leaves_a_row_of_each_crash(
    daemon: Daemon, failing: Failing, lasting: bool
) -> None:
    failed = []
    for number in range(1, LASTING_MAX if lasting else POINTS_MAX):
        failing.arm(number, lasting=lasting)
        name = f"w{number}"
        run = start_handler(daemon.paths, ["7", name, "11", f"{1_800_000_000 + number}"])
        run.feed(CORE)
        assert run.wait() == 0, name
        failing.wait_quiet()
        failed.append(failing.disarm())
        assert daemon.process is not None and daemon.process.poll() is None, name
        if failed[-3:] == [0, 0, 0]:
            break
    assert len(failed) > 10, "there are write points"
    assert lasting or failed[-1] == 0, "all of them were reached"
    daemon.stop()
    daemon.start()
    names = {f"w{number}" for number in range(1, len(failed) + 1)}
    rows = daemon.wait_for(len(names), seconds=60)
    assert {row["comm"] for row in rows} == names
    assert len(rows) == len(names), "no crash has two rows"
    whole = [row for row in rows if row["state"] == "complete"]
    assert len(whole) > len(rows) // 4
    assert daemon.crashctl("verify", "--strict", check=False).stdout == ""
    assert "Traceback" not in daemon.log.read_text()
