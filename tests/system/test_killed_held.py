"""Real crashes whose worker, or daemon, is killed at any moment: no core is lost.

CRASHD_KILLS says at how many random moments something is killed (200 take some five minutes).
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crashd.store.corefile import read_core
from tests.integration.test_killed import busy
from tests.running import KEEPING_CONFIG, Daemon, wait_until
from tests.system.conftest import raise_core_limit

KILLS = int(os.environ.get("CRASHD_KILLS", "6"))
CONFIG = KEEPING_CONFIG + '[capture]\nbuffer = "64M"\n'
VICTIM = """
import os, random, signal, sys
size = int(sys.argv[2])
part = random.Random(int(sys.argv[1])).randbytes(min(size, 100 << 20))
held = part * (size // len(part))
os.write(1, b"r")
signal.pause()
"""
MIB = 1 << 20
FIRST, LAST = 64, 4096
"""A part of the memory that is looked for in the core, at its beginning and at its end."""


def start_victim(number: int, size: int) -> subprocess.Popen[bytes]:
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(number), str(size)],
        stdout=subprocess.PIPE,
        preexec_fn=raise_core_limit,
    )
    assert victim.stdout is not None
    with victim.stdout as ready:
        assert ready.read(1) == b"r"
    return victim


def kill_something(daemon: Daemon, chance: random.Random) -> str:
    if chance.random() < 0.2:
        daemon.stop(signal.SIGKILL)
        daemon.start()
        return "daemon"
    for pid in busy(daemon)[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return "worker"
    return "nothing"


def core_of(daemon: Daemon, crash_id: str) -> bytes:
    fd = os.open(daemon.paths.crashes / crash_id / "core.zst", os.O_RDONLY)
    try:
        return b"".join(read_core(fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize("daemon", [CONFIG], indirect=True)
def test_worker_killed_while_it_reads_the_memory_loses_nothing(daemon: Daemon) -> None:
    """The copy of the worker holds the process, too."""
    with start_victim(1, 200 * MIB) as victim:
        victim.send_signal(signal.SIGSEGV)
        wait_until(lambda: bool(partial(daemon)), 20, "a worker reads it")
        for pid in busy(daemon):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                break
        assert victim.wait(60) == -signal.SIGSEGV
    (found,) = daemon.wait_for(1, seconds=120)
    assert (found["state"], found["capture"]["engine"]) == ("complete", "memory")
    assert "a copy of it continues" in daemon.log.read_text()


MARK = f"a mark of test {os.getpid()}"


@pytest.mark.parametrize("daemon", [CONFIG], indirect=True)
def test_process_killed_while_its_memory_is_read_leaves_its_stacks(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment lies at the end of its stack, behind all other memory."""
    monkeypatch.setenv("CRASHD_TEST_MARK", MARK)
    for _ in range(8):  # until one is killed in time: after its stacks, and before its end
        with start_victim(1, 500 * MIB) as victim:
            victim.send_signal(signal.SIGSEGV)
            wait_until(lambda: bool(partial(daemon)), 20, "a worker reads it")
            victim.kill()
            victim.wait(60)
        (found,) = daemon.wait_for(1, seconds=240)
        if found["state"] != "complete" and found["capture"]["engine"] == "memory":
            break
        assert daemon.crashctl("delete", "--yes", found["id"]).returncode == 0
    assert found["state"] == "truncated"
    assert "killed" in found["capture"]["reason"]
    assert f"CRASHD_TEST_MARK={MARK}\0".encode() in core_of(daemon, found["id"])
    assert found["core"]["size_bytes"] == found["core"]["expected_bytes"]


def partial(daemon: Daemon) -> list[Path]:
    return list(daemon.paths.crashes.glob("*/core.zst.partial"))


@pytest.mark.parametrize("daemon", [CONFIG], indirect=True)
@pytest.mark.timeout(120 + 20 * KILLS)
def test_killed_at_any_moment_no_core_is_lost(daemon: Daemon) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, killed = random.Random(seed), list[str]()
    for number in range(KILLS):
        size = chance.choice((20, 40, 90)) * MIB
        with start_victim(number, size) as victim:
            victim.send_signal(signal.SIGSEGV)
            time.sleep(chance.random() * chance.choice((0.05, 0.2, 1)))
            killed.append(kill_something(daemon, chance))
            assert victim.wait(60) == -signal.SIGSEGV
        crashes = daemon.wait_for(1, seconds=120)
        text = f"{number} {killed[-1]}: {crashes} {daemon.log.read_text()[-900:]}"
        assert [crash["state"] for crash in crashes] == ["complete"], text
        (found,) = crashes
        wanted = random.Random(number).randbytes(size)
        core = core_of(daemon, found["id"])
        at = core.index(wanted[:FIRST])
        assert wanted[-LAST:] in memoryview(core)[at:].tobytes()[size - LAST :]
        assert daemon.crashctl("delete", "--yes", found["id"]).returncode == 0
        wait_until(lambda: not daemon.seen(), 20, "it is deleted")
    print({what: killed.count(what) for what in set(killed)})
