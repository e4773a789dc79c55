"""Crashes of one user that take as long as he can make them, beside those of others."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CorePatternOwner
from tests.running import DEFAULT_CONFIG, Daemon, wait_until
from tests.system.fusefile import SilentFile
from tests.system.test_security import CRASH, NOBODY, become, caught, die_as
from tests.yardstick import slowness

PROGRAM = Path(__file__).parent / "programs/lured.c"
CONFIG = DEFAULT_CONFIG + '[capture]\npipe_limit = 512\npage_timeout = "60s"\n'
"""As many may dump at once: what the kernel drops reaches nobody. No page is given up here."""
FAST_SECONDS = 5


@pytest.fixture
def root(core_pattern_owner: CorePatternOwner) -> Iterator[Path]:
    """A root that other users can walk through, as / is."""
    path = Path(f"/tmp/cdg{os.getpid()}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def siege(root: Path, count: int) -> Iterator[set[int]]:
    """Have so many crashes of nobody's, each with a page that does not come until the end."""
    program = root / "lured"
    subprocess.run(["gcc", "-O1", "-o", program, PROGRAM], check=True)
    children = []
    try:
        with SilentFile(root / "silent") as silent:
            command = [str(program), str(silent.path), "x" * 3 * 4096]
            for _ in range(count):
                children.append(subprocess.Popen(command, preexec_fn=lambda: become(NOBODY)))
            wait_until(lambda: all(map(is_dumping, children)), 30, "all dump core")
            yield {child.pid for child in children}
    finally:
        for child in children:
            child.kill()
            child.wait(30)


def is_dumping(child: "subprocess.Popen[bytes]") -> bool:
    return "\nCoreDumping:\t1\n" in Path(f"/proc/{child.pid}/status").read_text()


def assert_caught_fast(daemon: Daemon) -> int:
    """Crash as root: the process is let go soon, and all is recorded that ever is."""
    began = time.monotonic()
    pid = die_as(0, CRASH)
    crash = caught(daemon, pid)
    seconds = time.monotonic() - began
    assert seconds < FAST_SECONDS * slowness()
    assert (crash["state"], crash["uid"], crash["warnings"]) == ("complete", 0, [])
    assert crash["cmdline"].startswith("/bin/sh"), "what /proc tells is there"
    return pid


def test_sec_35_slow_crashes_of_one_user_hold_up_nobody_elses(root: Path) -> None:
    with Daemon(root, config=CONFIG) as daemon:
        with siege(root, 200) as slow:
            pids = {assert_caught_fast(daemon)}
            wait_until(lambda: "gave up waiting" in daemon.log.read_text(), 30, "they spool")
            pids.add(assert_caught_fast(daemon))
        found = daemon.wait_for(len(pids) + len(slow))
        assert {c["pid"] for c in found} == pids | slow
        assert daemon.crashctl("verify").stdout == ""


def test_sec_34_crash_behind_one_that_never_answers_is_whole(root: Path) -> None:
    """Arguments in a page that never comes; and the worker that waited for it takes no more."""
    config = CONFIG.replace('"60s"', '"500ms"') + "workers = 1\n"
    with Daemon(root, config=config) as daemon, siege(root, 1) as slow:
        pid = die_as(NOBODY, CRASH)
        crash = caught(daemon, pid)
        assert (crash["state"], crash["warnings"]) == ("complete", [])
        assert crash["cmdline"].startswith("/bin/sh"), "what /proc tells is there"
        lured = caught(daemon, *slow)
        assert lured["state"] == "truncated"
        assert "did not answer before capture.page_timeout" in lured["capture"]["reason"]
        assert lured["cmdline"].startswith(str(root)), "as far as it can be read"
        assert "worker died" not in daemon.log.read_text()
