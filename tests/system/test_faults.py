"""Faults of what lies around: file systems that fail, come and go, and hide processes; cores that
are nearly all holes. The numbers are those of the table in SECURITY.md.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from crashd.store.paths import Paths
from tests.builders.kdumps import save
from tests.conftest import CorePatternOwner
from tests.running import DEFAULT_CONFIG, KEEPING_CONFIG, Daemon, wait_until
from tests.system.conftest import raise_core_limit

MIB = 1 << 20
GIB = 1 << 30
SPARSE = """
import mmap, os
room = mmap.mmap(-1, 40 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
for gib in range(40):
    room[gib << 30] = 1
os.kill(os.getpid(), 11)
"""
HIDING = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'


@pytest.fixture
def root(core_pattern_owner: CorePatternOwner, short_tmp: Path) -> Path:
    """A root for a daemon that may take core_pattern."""
    del core_pattern_owner
    return short_tmp / "r"


@pytest.fixture
def own_disk(root: Path) -> Iterator[Path]:
    """An ext4 of its own for the state directory; its image."""
    image, point = root / "disk", Paths(root).state_dir
    point.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(100 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mount(image, point)
    try:
        yield image
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def mount(image: Path, point: Path) -> None:
    """Mount a file system that is in a file."""
    subprocess.run(["mount", "-o", "loop", image, point], check=True)


def test_fault_04_file_system_that_turns_read_only_costs_no_process_its_end(
    root: Path, own_disk: Path, crash_sleep: Callable[[], int]
) -> None:
    """As after an I/O error: ext4 aborts its journal. Nothing can be kept, and all go on."""
    daemon = Daemon(root, config=KEEPING_CONFIG)
    point = daemon.paths.state_dir
    with daemon:
        first = crash_sleep()
        daemon.wait_for(1)
        subprocess.run(["mount", "-o", "remount,abort", point], check=True)
        started_s = time.monotonic()
        crash_sleep()
        assert time.monotonic() - started_s < 10, "it is let go"
        wait_until(lambda: "cannot be" in daemon.log.read_text(), 30, "it is told")
        assert [c["pid"] for c in daemon.crashes()] == [first], "what there is can be read"
        assert daemon.process is not None and daemon.process.poll() is None
        daemon.crashctl("install")
    assert "Traceback" not in daemon.log.read_text()
    subprocess.run(["umount", point], check=True)
    checked = subprocess.run(["e2fsck", "-f", "-y", own_disk], capture_output=True, check=False)
    assert checked.returncode in (0, 1), checked.stdout
    mount(own_disk, point)
    with daemon:
        last = crash_sleep()
        assert {c["pid"] for c in daemon.wait_for(2)} >= {first, last}
        assert daemon.crashctl("verify", "--strict").stdout == ""
        daemon.crashctl("uninstall")


def test_fault_08_sparse_core_of_40_gib_costs_what_is_resident(root: Path) -> None:
    config = f'{KEEPING_CONFIG}[capture]\nmax_core = "64G"\n'
    with Daemon(root, config=config) as daemon:
        started_s = time.monotonic()
        child = subprocess.Popen([sys.executable, "-c", SPARSE], preexec_fn=raise_core_limit)
        assert child.wait(60) == -signal.SIGSEGV
        assert time.monotonic() - started_s < 20
        (crash,) = daemon.wait_for(1)
        assert crash["state"] == "complete", crash["capture"]
        assert crash["core"]["size_bytes"] > 40 * GIB
        assert crash["core"]["stored_bytes"] < 32 * MIB


def test_fault_15_file_systems_that_come_and_go_over_var_crash_are_followed(
    short_tmp: Path,
) -> None:
    dumps = short_tmp / "var/crash"
    dumps.mkdir(parents=True)
    config = f'{DEFAULT_CONFIG}[kdump]\nrescan = "1s"\n'
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        for number in range(5):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", dumps], check=True)
            try:
                save(dumps, f"20260101010{number}")
                wait_until(lambda: kernel_states(daemon)["complete"] == 1, 30, "it is seen")
            finally:
                subprocess.run(["umount", "-l", dumps], check=True)
            gone = number + 1
            wait_until(partial(has, daemon, {"missing": gone}), 30, "all are missing")
            assert os.listdir(dumps) == [], "nothing is made beneath"
        assert "Traceback" not in daemon.log.read_text()


def kernel_states(daemon: Daemon) -> Counter[str]:
    """Count the kernel's crashes by state."""
    return Counter(crash["state"] for crash in daemon.crashes("--kind", "kernel"))


def has(daemon: Daemon, states: Mapping[str, int]) -> bool:
    """Tell whether these are all of the kernel's crashes."""
    return kernel_states(daemon) == states


def test_fault_24_processes_are_hidden_from_others_and_not_from_us(
    root: Path, crash_sleep: Callable[[], int]
) -> None:
    daemon = Daemon(root, config=KEEPING_CONFIG)
    daemon.start(prefix=["unshare", "-m", "sh", "-c", HIDING, "-"])
    try:
        pid = crash_sleep()
        (crash,) = daemon.wait_for(1)
        assert (crash["pid"], crash["state"], crash["capture"]["identity"]) == (
            pid,
            "complete",
            "kernel",
        )
        assert crash["exe"].endswith("/sleep")
    finally:
        daemon.stop()
