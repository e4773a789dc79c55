"""What one user, or one container, may cost others: real namespaces and uids, the real daemon."""

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.running import Daemon, wait_until
from tests.system.test_security import CRASH, NOBODY, become, caught, die_as

LIMITED = (
    '[http]\nlisten = "127.0.0.1:0"\n[analysis]\nenabled = false\n'
    "[limiter.site]\nfull = 4\nmini = 4\n[limiter.uid]\nfull = 6\nmini = 6\n"
)
FLOOD = "for i in $(seq 32); do /bin/sh -c 'kill -SEGV $$'; done"


@pytest.fixture
def root(core_pattern_owner: None, short_tmp: Path) -> Path:
    del core_pattern_owner
    short_tmp.chmod(0o755)
    return short_tmp


def kept(daemon: Daemon, count: int) -> Counter[str]:
    """Count what is kept of the crashes of sh, once there are so many."""
    found = [c for c in daemon.wait_for(count) if c["exe"].startswith("/usr/bin/")]
    return Counter(c["capture"]["disposition"] for c in found)


def run_as(uid: int, *command: str) -> None:
    subprocess.run(command, preexec_fn=lambda: become(uid), check=False, timeout=120)


@pytest.mark.parametrize("mode", ["pipe", "socket"])
def test_sec_83_crashes_in_a_container_cost_the_host_no_core(root: Path, mode: str) -> None:
    with Daemon(root, config=f'[capture]\nmode = "{mode}"\n' + LIMITED) as daemon:
        run_as(0, "unshare", "--mount", "/bin/sh", "-c", FLOOD)
        assert kept(daemon, 32)["metadata"] >= 16
        crash = caught(daemon, die_as(0, CRASH))
        assert (crash["capture"]["disposition"], crash["mount_ns"]) == ("full", None)
        run_as(0, "/bin/sh", "-c", FLOOD)  # and the other way round
        daemon.wait_for(65)
        # takes the inode of the first one, which is free again
        first = subprocess.Popen(["unshare", "--mount", "sleep", "100"])
        try:
            wait_until(lambda: Path(f"/proc/{first.pid}/comm").read_text() == "sleep\n")
            pid = die_as(0, ["unshare", "--mount", *CRASH])
        finally:
            first.kill()
            first.wait()
        crash = caught(daemon, pid)
        assert (crash["capture"]["disposition"], crash["state"]) == ("full", "complete")
        assert isinstance(crash["mount_ns"], int)


def test_sec_83_namespaces_that_a_user_makes_are_no_more_room(root: Path) -> None:
    with Daemon(root, config=LIMITED) as daemon:
        for _ in range(16):
            run_as(NOBODY, "unshare", "--user", "--mount", *CRASH)
        crashes = daemon.wait_for(16)
        assert {crash["uid"] for crash in crashes} == {NOBODY}
        assert kept(daemon, 16) == {"full": 6, "mini": 6, "metadata": 4}


def test_sec_83_container_of_a_spooled_crash_is_known(root: Path) -> None:
    with Daemon(root, config=LIMITED) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            pid = die_as(0, ["unshare", "--mount", *CRASH])
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        crash = caught(daemon, pid)
        assert isinstance(crash["mount_ns"], int)
        assert crash["user_ns"] is None
