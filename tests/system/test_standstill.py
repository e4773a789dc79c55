"""A store whose file system stands still for a while: nothing is lost, and nobody is blamed."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import KEEPING_CONFIG, Daemon
from tests.system.conftest import raise_core_limit

COUNT = 120
STANDS_SECONDS = 4.0
"""Longer than a worker's first step may take (capture.snapshot_timeout), and than a handler waits
for its receipt."""


@pytest.fixture
def freezable(short_tmp: Path) -> Iterator[Path]:
    """A root on an ext4 of its own, on a loop device."""
    image, root = short_tmp / "image", short_tmp / "e"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", root], check=True)


@pytest.mark.parametrize("mode", ["pipe", "socket"])
def test_sec_82_store_that_stands_still_amid_crashes_loses_none(
    freezable: Path, core_pattern_owner: None, mode: str
) -> None:
    del core_pattern_owner
    config = f'[capture]\nmode = "{mode}"\nworkers = 8\n' + KEEPING_CONFIG
    with Daemon(freezable, config=config) as daemon:
        sleepers = [
            subprocess.Popen(["sleep", "1000"], preexec_fn=raise_core_limit) for _ in range(COUNT)
        ]
        half = COUNT // 2
        for sleeper in sleepers[:half]:
            os.kill(sleeper.pid, signal.SIGSEGV)
        subprocess.run(["fsfreeze", "-f", freezable], check=True)
        try:
            for sleeper in sleepers[half:]:
                os.kill(sleeper.pid, signal.SIGSEGV)
            time.sleep(STANDS_SECONDS)
        finally:
            subprocess.run(["fsfreeze", "-u", freezable], check=True)
        for sleeper in sleepers:
            assert sleeper.wait(60) == -signal.SIGSEGV
        found = daemon.wait_for(COUNT, seconds=120)
        assert len(found) == COUNT
        assert {crash["pid"] for crash in found} == {sleeper.pid for sleeper in sleepers}
        states = {crash["id"]: crash["state"] for crash in found}
        assert set(states.values()) == {"complete"}, daemon.log.read_text()
        assert "took too long" not in daemon.log.read_text()
