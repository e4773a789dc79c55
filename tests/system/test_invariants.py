"""The invariants hold of a daemon that the kernel hands crashes; what is done outside is seen."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crashd.store.paths import Paths
from tests.invariants import assert_invariants, of_outside, read_footprint
from tests.outside import Outside
from tests.running import Daemon, wait_until

HOST = (Path("/"), Path("/tmp"), Path("/var"), Path("/run"), Path("/dev/shm"))
MISDEED = """
import os, sys, time
other, inside = sys.argv[1:]
sys.stdin.readline()
for directory in (other, inside):
    os.mkdir(directory + "/d")
    os.rmdir(directory + "/d")
    with open(directory + "/f", "w") as file:
        file.write("x")
    os.rename(directory + "/f", directory + "/g")
    os.chmod(directory + "/g", 0o600)
    os.unlink(directory + "/g")
print("done", flush=True)
sys.stdin.readline()
"""


def test_crashes_touch_nothing_outside_of_the_root(
    daemon: Daemon, crash_sleep: Callable[[], int]
) -> None:
    crash_sleep()
    daemon.wait_for(1)
    before = read_footprint(daemon.pid)
    with Outside(daemon.paths.root, HOST, [daemon.pid]) as outside:
        for _ in range(5):
            crash_sleep()
        daemon.wait_for(6)
        assert_invariants(daemon, before=before, outside=outside)
    assert outside.events > 0, "the root is on a file system that is watched"


def misbehave(outside: Outside, other: Path, inside: Path, *, ours: bool) -> None:
    """Change something in both directories, by a child of a child, and wait for its events."""
    words = ["sh", "-c", '"$@"; true', "-", sys.executable, "-c", MISDEED, str(other), str(inside)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        if ours:
            outside.adopt(child.pid)
        before = outside.events
        child.stdin.write(b"go\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"done\n"
        # three names in each of two directories: events of one name may have been merged into one
        wait_until(lambda: outside.events >= before + 6, 20, "events")
        time.sleep(0.2)
        child.stdin.close()


def test_outside_sees_what_a_descendant_does(short_tmp: Path) -> None:
    inside, other = short_tmp / "in", short_tmp / "out"
    inside.mkdir()
    other.mkdir()
    with Outside(inside, HOST) as outside:
        (short_tmp / "mine").touch()
        misbehave(outside, other, inside, ours=False)
        assert of_outside(outside) == [], "neither a stranger nor the test itself is ours"
        misbehave(outside, other, inside, ours=True)
    told = "\n".join(of_outside(outside))
    for word in ("written", "made", "moved away", "moved here", "given other", "removed"):
        assert word in told
    assert str(inside) not in told
    assert f"outside: {other}/d" in told


def make_handler(root: Path) -> Path:
    """Put a program in the handler's place that leaves something outside of the root."""
    program = Paths(root).handler
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n: > {root}.left\nsleep 0.3\n")
    program.chmod(0o755)
    return program


def test_outside_sees_what_the_handler_does(short_tmp: Path) -> None:
    """By its name: it is the kernel's child. That of another root is not ours."""
    ours, other = make_handler(short_tmp / "in"), make_handler(short_tmp / "other")
    with Outside(short_tmp / "in", HOST) as outside:
        subprocess.run([other], check=True)
        subprocess.run([ours], check=True)
        wait_until(lambda: outside.touched.total() > 0, 20, "an event")
    assert {what.partition(":")[0] for what in outside.touched} == {f"{short_tmp}/in.left"}


def start_with(pid: int, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a program under a number that is free: the kernel counts on from the last given."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        child = subprocess.Popen(words)
        if child.pid == pid:
            return child
        child.kill()
        child.wait()
    raise AssertionError(f"{pid} was always another's")


def test_outside_does_not_take_a_stranger_for_one_that_is_gone(short_tmp: Path) -> None:
    for number in range(20):
        left = short_tmp / f"left{number}"
        with Outside(short_tmp / "in", HOST) as outside:
            member = subprocess.Popen(["sleep", "60"])
            outside.adopt(member.pid)
            time.sleep(0.05)  # starts are told in ticks of 10 ms
            member.kill()
            member.wait()
            with start_with(member.pid, ["sh", "-c", f": > {left}; sleep 0.5"]):
                wait_until(left.exists, 20, "its file")
        assert of_outside(outside) == []
        if outside.unknown == 0:
            return
        # others, too, write and end before they are judged: tests that run meanwhile
    raise AssertionError("it was there to be judged")
