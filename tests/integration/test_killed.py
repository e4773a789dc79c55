"""Daemon or worker killed in each stage of a capture: queued, held, released and raw, storing.

Nothing is lost, except what a worker was killed with while it read a stream, which nobody can read
twice. (Real crashes are read from memory: tests/system/test_killed_held.py.)
CRASHD_KILLS says at how many random moments they are killed.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crashd.store.corefile import read_core
from crashd.store.handlerfile import install_handler
from tests.builders.elfcore import CoreSegment, build_core
from tests.integration.handler import HandlerRun, start_handler
from tests.integration.test_daemon import children, metric
from tests.running import KEEPING_CONFIG, Daemon, wait_until

KILLS = int(os.environ.get("CRASHD_KILLS", "20"))
MIB = 1 << 20
CONFIG = KEEPING_CONFIG + '[capture]\nbuffer = "16M"\ncompression_level = 3\n'
NOISE = random.Random(5).randbytes(2 * MIB)


@pytest.fixture
def daemon(short_tmp: Path) -> Iterator[Daemon]:
    with Daemon(short_tmp, "--no-register", config=CONFIG) as running:
        install_handler(running.paths)
        yield running


def a_core(number: int, size: int) -> bytes:
    noise = b"%16d" % number + NOISE * (size // len(NOISE) + 1)
    return build_core(segments=[CoreSegment(0x400000, noise[:size])])


def workers(daemon: Daemon) -> list[int]:
    return [c for nursery in children(daemon.pid) for c in children(nursery)]


def busy(daemon: Daemon) -> list[int]:
    """Return the workers that have an entry open."""
    found = []
    for pid in workers(daemon):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if "/crashes/" in os.readlink(fd):
                    found.append(pid)
                    break
    return found


def kill_daemon(daemon: Daemon) -> None:
    daemon.stop(signal.SIGKILL)


def stored(daemon: Daemon, crash: dict[str, Any]) -> bytes:
    fd = os.open(daemon.paths.crashes / crash["id"] / "core.zst", os.O_RDONLY)
    try:
        return b"".join(read_core(fd))
    finally:
        os.close(fd)


def crash_number(number: int) -> list[str]:
    return [str(1000 + number), f"prog{number}", "11", "1800000000"]


class Held:
    """A crash whose core comes no further than its middle: its worker reads on."""

    def __init__(self, daemon: Daemon, number: int, core: bytes) -> None:
        self.run = start_handler(daemon.paths, crash_number(number))
        self.core = memoryview(core)
        part, self.core = self.core[: len(core) // 2], self.core[len(core) // 2 :]
        while part:
            part = part[os.write(self.run.write_fd, part) :]

    def go_on(self) -> None:
        self.run.feed(bytes(self.core))
        assert self.run.wait() == 0


def crash_whole(daemon: Daemon, number: int, core: bytes) -> None:
    run = start_handler(daemon.paths, crash_number(number))
    run.feed(core)
    assert run.wait() == 0


def only(daemon: Daemon, comm: str) -> dict[str, Any]:
    (found,) = [c for c in daemon.crashes() if c["comm"] == comm]
    return found


def settled(daemon: Daemon, count: int) -> list[dict[str, Any]]:
    found = daemon.wait_for(count, seconds=60)
    assert len(found) == count
    return found


CORE = a_core(0, 8 * MIB)


# -- the daemon ------------------------------------------------------------------------------------


def test_daemon_killed_while_a_process_is_held_loses_nothing(daemon: Daemon) -> None:
    held = Held(daemon, 1, CORE)
    kill_daemon(daemon)
    held.go_on()
    daemon.start()
    (found,) = settled(daemon, 1)
    assert (found["state"], found["capture"]["mode"]) == ("complete", "pipe")
    assert stored(daemon, found) == CORE


def test_daemon_killed_while_cores_are_raw_loses_nothing(daemon: Daemon) -> None:
    """They are let go, and wait for a process that is held."""
    held = Held(daemon, 1, CORE)
    for number in (2, 3, 4):
        crash_whole(daemon, number, CORE)
    wait_until(lambda: metric(daemon, "crashd_storers ") == 3, 30, "all three are let go")
    assert metric(daemon, "crashd_holders ") == 1
    assert metric(daemon, "crashd_spilled_bytes_total ") > 0, "the buffer has no room for all"
    kill_daemon(daemon)
    held.go_on()
    daemon.start()
    for found in settled(daemon, 4):
        assert (found["state"], found["capture"]["mode"]) == ("complete", "pipe")
        assert stored(daemon, found) == CORE


def test_daemon_killed_while_a_core_is_stored_loses_nothing(daemon: Daemon) -> None:
    large = a_core(1, 48 * MIB)
    crash_whole(daemon, 1, large)
    wait_until(lambda: partial_bytes(daemon) > MIB, 30, "it is being stored")
    kill_daemon(daemon)
    daemon.start()
    (found,) = settled(daemon, 1)
    assert found["state"] == "complete"
    assert stored(daemon, found) == large


def partial_bytes(daemon: Daemon) -> int:
    return sum(path.stat().st_size for path in daemon.paths.crashes.glob("*/core.zst.partial"))


def test_daemon_killed_while_crashes_are_queued_has_them_spooled(daemon: Daemon) -> None:
    """No worker is there: the handlers know that their crashes are on record, and wait."""
    (nursery,) = children(daemon.pid)
    taken = workers(daemon)
    os.kill(nursery, signal.SIGSTOP)
    for pid in taken:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_there, taken)), 30, "no worker is left")
    run = start_handler(daemon.paths, crash_number(1))
    wait_until(lambda: len(daemon.seen()) == 1, 30, "it is on record")
    kill_daemon(daemon)
    os.kill(nursery, signal.SIGCONT)
    run.feed(CORE)
    assert run.wait() == 0
    daemon.start()
    (found,) = settled(daemon, 1)
    assert (found["state"], found["capture"]["mode"]) == ("complete", "spool")
    assert stored(daemon, found) == CORE


def is_there(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_handler_waits_for_a_daemon_that_is_only_busy(daemon: Daemon) -> None:
    """Once it gave up after three seconds, and read the whole core by itself."""
    stopped = workers(daemon)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    run = start_handler(daemon.paths, crash_number(1))
    threading.Thread(target=run.feed, args=(CORE,)).start()
    assert run.wait() == 0
    (found,) = settled(daemon, 1)
    assert (found["state"], found["capture"]["mode"]) == ("complete", "pipe")
    for pid in {*stopped} & {*workers(daemon)}:  # one that got no crash would outlive the test
        os.kill(pid, signal.SIGCONT)


# -- a worker --------------------------------------------------------------------------------------


def kill_busy(daemon: Daemon) -> None:
    for pid in busy(daemon):
        os.kill(pid, signal.SIGKILL)


def test_worker_killed_before_it_began_costs_nothing(daemon: Daemon) -> None:
    stopped = workers(daemon)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    run = start_handler(daemon.paths, crash_number(1))
    threading.Thread(target=run.feed, args=(CORE,)).start()
    wait_until(lambda: len(daemon.seen()) == 1, 30, "it is on record")
    for pid in stopped:  # not one forked since, which may read the core by now
        os.kill(pid, signal.SIGKILL)
    assert run.wait() == 0
    (found,) = settled(daemon, 1)
    assert found["state"] == "complete", found["capture"]
    assert stored(daemon, found) == CORE


def test_worker_killed_while_the_process_is_held_leaves_a_record(daemon: Daemon) -> None:
    held = Held(daemon, 1, CORE)
    wait_until(lambda: bool(busy(daemon)), 30, "a worker has it")
    kill_busy(daemon)
    held.go_on()
    (found,) = settled(daemon, 1)
    assert found["state"] in ("lost", "truncated", "complete")
    assert found["comm"] == "prog1"
    assert found["state"] != "lost" or "died" in found["capture"]["reason"]


def test_worker_killed_while_its_core_is_raw_loses_nothing(daemon: Daemon) -> None:
    held = Held(daemon, 1, CORE)
    before = busy(daemon)
    crash_whole(daemon, 2, CORE)
    wait_until(lambda: metric(daemon, "crashd_storers ") == 1, 30, "it is let go")
    (raw,) = set(busy(daemon)) - set(before)
    os.kill(raw, signal.SIGKILL)
    wait_until(lambda: "a copy of it continues" in daemon.log.read_text(), 30, "its copy goes on")
    held.go_on()
    assert {c["comm"] for c in settled(daemon, 2)} == {"prog1", "prog2"}
    for comm in ("prog1", "prog2"):
        found = only(daemon, comm)
        assert found["state"] == "complete"
        assert stored(daemon, found) == CORE
    assert only(daemon, "prog2")["capture"]["hold_seconds"] is not None


def test_worker_and_its_copy_killed_leave_all_that_is_known(daemon: Daemon) -> None:
    held = Held(daemon, 1, CORE)
    before = busy(daemon)
    crash_whole(daemon, 2, CORE)
    wait_until(lambda: metric(daemon, "crashd_storers ") == 1, 30, "it is let go")
    (raw,) = set(busy(daemon)) - set(before)
    (copy,) = children(raw)
    os.kill(copy, signal.SIGKILL)
    os.kill(raw, signal.SIGKILL)
    wait_until(lambda: metric(daemon, "crashd_storers ") == 0, 30, "their death is known")
    held.go_on()
    settled(daemon, 2)
    lost = only(daemon, "prog2")
    assert lost["capture"]["hold_seconds"] is not None, "what was known at the release"
    assert lost["state"] == "lost"


def test_worker_killed_while_it_stores_loses_nothing(daemon: Daemon) -> None:
    large = a_core(1, 64 * MIB)
    crash_whole(daemon, 1, large)
    wait_until(lambda: partial_bytes(daemon) > MIB, 30, "it is being stored")
    kill_busy(daemon)
    (found,) = settled(daemon, 1)
    assert found["state"] == "complete"
    assert stored(daemon, found) == large


# -- at any moment ---------------------------------------------------------------------------------


def feed_all(runs: list[HandlerRun], cores: list[bytes]) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=run.feed, args=(core,))
        for run, core in zip(runs, cores, strict=True)
    ]
    for thread in threads:
        thread.start()
    return threads


def kill_some(daemon: Daemon, chance: random.Random) -> bool:
    """Kill the daemon, or a worker; return whether it was the daemon."""
    victims = busy(daemon)
    if chance.random() < 0.5 or not victims:
        kill_daemon(daemon)
        daemon.start()
        return True
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(victims), signal.SIGKILL)
    return False


def one_round(daemon: Daemon, number: int, chance: random.Random) -> tuple[dict[str, bytes], bool]:
    """Crash three, and kill something meanwhile; return their cores, and whether it was the
    daemon.
    """
    names = range(3 * number, 3 * number + 3)
    cores = {f"prog{n}": a_core(n, chance.choice((MIB // 4, 5 * MIB, 12 * MIB))) for n in names}
    runs = [start_handler(daemon.paths, crash_number(n)) for n in names]
    threads = feed_all(runs, list(cores.values()))
    time.sleep(chance.random() * chance.choice((0.05, 0.3, 1)))
    was_daemon = kill_some(daemon, chance)
    for thread in threads:
        thread.join()
    assert [run.wait() for run in runs] == [0] * 3
    return cores, was_daemon


def is_whole(daemon: Daemon, crash: dict[str, Any], core: bytes) -> bool:
    """Check what became of a crash, and return whether all of it is there."""
    got = stored(daemon, crash) if crash["core"]["path"] else b""
    assert core.startswith(got)
    assert (crash["state"] == "complete") == (got == core), crash
    assert crash["state"] in ("complete", "truncated", "lost"), crash
    return got == core


@pytest.mark.timeout(120 + 60 * KILLS)
def test_killed_at_any_moment_nothing_is_lost_that_can_be_kept(daemon: Daemon) -> None:
    """A record for each, and only one; each worker that is killed may cost one core."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, cores, workers_killed = random.Random(seed), dict[str, bytes](), 0
    for number in range(KILLS):
        more, was_daemon = one_round(daemon, number, chance)
        cores |= more
        workers_killed += not was_daemon
    found = daemon.wait_for(3 * KILLS, seconds=60 + 20 * KILLS)
    assert sorted(c["comm"] for c in found) == sorted(cores)
    broken = [c for c in found if not is_whole(daemon, c, cores[c["comm"]])]
    assert len(broken) <= workers_killed, [(c["state"], c["capture"]) for c in broken]
    assert daemon.crashctl("verify", "--json").stdout.strip() == "[]"
