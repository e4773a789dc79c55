"""The debugger of `crashctl debug`: what it gets of root's, and what others can see of the core."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from crashd.edge.sandbox.loanedid import IDS
from crashd.store.entry import prepare
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.bundle import build_tar, bundle_members, sum_up
from tests.integration.test_crashctl import add_crash, environment
from tests.running import wait_until

WAITING = """#!/bin/sh
for core; do :; done
head -c 4 "$core" | tail -c 3
echo
exec sleep 60
"""
HOSTILE = """#!/usr/bin/python3
import fcntl, os, termios

def types_into(fd):
    if fd < 0:
        return "no"
    try:
        for c in b"echo typed\\n":
            fcntl.ioctl(fd, termios.TIOCSTI, bytes([c]))
    except OSError:
        return "no"
    return "yes"

def opened(path):
    try:
        return os.open(path, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return -1

print("descriptors", *sorted(map(int, os.listdir("/proc/self/fd"))))
outer = os.environ.get("LC_OUTER", "")
print("session", os.getsid(0))
print("terminals", *(os.ttyname(fd) if os.isatty(fd) else "none" for fd in range(3)))
print("outer", types_into(opened(outer)))
for fd in range(3):
    types_into(fd)
types_into(opened("/dev/tty"))
print("secret", os.environ.get("SECRET"), "ids", *os.getresuid(), *os.getresgid(), *os.getgroups())
print("done", flush=True)
"""
INTERACTIVE = """#!/usr/bin/python3
import os, signal, sys, termios, time

def interrupted(number, frame):
    os.write(1, b"interrupted\\n")  # a print may be under way

signal.signal(signal.SIGINT, interrupted)
print("ready", flush=True)
while True:
    line = sys.stdin.readline().strip()
    if line == "size":
        print("size", *os.get_terminal_size(0), flush=True)
    elif line == "quit" or not line:
        sys.exit(3)
    else:
        print("echo", line.upper(), flush=True)
"""
SHELL = """
import array, fcntl, os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
before = termios.tcgetattr(0)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
try:
    os.setpgid(child, child)
except OSError:
    pass
print("shell", os.getsid(0), os.ttyname(0), child, flush=True)
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    left = array.array("i", [0])
    fcntl.ioctl(0, termios.FIONREAD, left)
    same = "restored" if termios.tcgetattr(0) == before else "changed"
    os.tcsetpgrp(0, os.getpid())
    if not os.WIFSTOPPED(status):
        break
    print("stopped", same, flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, child)
    os.killpg(child, signal.SIGCONT)
print("ended", os.waitstatus_to_exitcode(status), same, "left", left[0], flush=True)
"""


@pytest.fixture
def place(short_tmp: Path) -> Path:
    """A store with one crash, a bundle, and directories for debuggers and their files."""
    short_tmp.chmod(0o755)
    paths = Paths(short_tmp / "root")
    paths.root.mkdir()
    prepare(paths)
    crash = add_crash(paths, 0)
    with Index.open(paths.index) as index:
        index.put([crash])
    raw = zstandard.compress(build_tar(sum_up(bundle_members())))
    (short_tmp / "x.tar.zst").write_bytes(raw)
    for name in ("bin", "tmp"):
        (short_tmp / name).mkdir()
    return short_tmp


def write_debugger(place: Path, text: str) -> None:
    (place / "bin/gdb").write_text(text)
    (place / "bin/gdb").chmod(0o755)


def command(place: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "crashd.cli", "--root", str(place / "root"), "debug", *words]


def variables(place: Path, **more: str) -> dict[str, str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return environment({"PATH": path, "TMPDIR": str(place / "tmp"), **more})


def below(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [p for child in found for p in (int(child), *below(int(child)))]


def readable(uid: int, paths: list[str]) -> list[str]:
    """What of `paths` a process of `uid` can read."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            for path in paths:
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                    os.write(theirs, path.encode() + b"\n")
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        found = file.read().decode().split("\n")
    os.waitpid(child, 0)
    return found[:-1]


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("what", ["-1", "x.tar.zst"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_sec_73_no_copy_of_a_core_is_for_others(
    place: Path, what: str, end: signal.Signals
) -> None:
    """Not while the debugger runs, and not after crashctl was killed."""
    write_debugger(place, WAITING)
    place.joinpath("bin").chmod(0o755)
    argument = str(place / what) if what.endswith("zst") else what
    with subprocess.Popen(
        command(place, argument), stdout=subprocess.PIPE, env=variables(place)
    ) as process:
        assert process.stdout is not None
        assert b"ELF\n" in iter(process.stdout.readline, b"")
        started = below(process.pid)
        debugger = started[-1]
        owner = os.stat(f"/proc/{debugger}").st_uid
        assert owner in IDS
        named = [str(path) for path in (place / "tmp").rglob("*")]
        opened = [f"/proc/{p}/fd/{n}" for p in started for n in os.listdir(f"/proc/{p}/fd")]
        assert readable(65534, [*named, *opened]) == []
        assert readable(owner + 1, [*named, *opened]) == []
        # a name could be linked to, or stay: the core has none
        assert [p for p in files_below(place / "tmp") if b"ccccc" in p.read_bytes()] == []
        assert [p for p in files_below(place / "tmp") if p.stat().st_size > 4096] == []
        process.send_signal(end)
        assert process.wait(30) in (128 + end, -end)
    wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in started), 20, "all are gone")
    left = list((place / "tmp").rglob("*"))
    if end == signal.SIGTERM:
        assert left == []
    assert {path.stat().st_uid for path in left} <= {0}
    assert readable(owner, [str(path) for path in left]) == []


class Outer:
    """A terminal with a shell, which starts crashctl as a job."""

    def __init__(self, place: Path, *words: str, **more: str) -> None:
        self.shown = ""
        env = variables(place, TERM="dumb", **more)
        child, self.terminal = pty.fork()
        if child == 0:
            # a terminal that its user's programs may open, as sudo's caller's is
            os.chmod(os.ttyname(0), 0o666)
            env["LC_OUTER"] = os.ttyname(0)
            os.execve(sys.executable, [sys.executable, "-c", SHELL, *command(place, *words)], env)
        self.child = child

    def __enter__(self) -> "Outer":
        return self

    def __exit__(self, *details: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        os.close(self.terminal)
        os.waitpid(self.child, 0)

    def expect(self, pattern: str) -> "re.Match[str]":
        """Wait until it is shown; forget what comes before its end."""
        end = time.monotonic() + 30
        while (found := re.search(pattern, self.shown)) is None:
            left = max(end - time.monotonic(), 0)
            assert select.select([self.terminal], [], [], left)[0], (pattern, self.shown)
            try:
                data = os.read(self.terminal, 65536)
            except OSError as e:
                raise AssertionError((pattern, self.shown)) from e
            self.shown += data.decode().replace("\r\n", "\n")
        self.shown = self.shown[found.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())


@pytest.mark.parametrize("caller", [{}, {"SUDO_UID": "12345", "SUDO_GID": "12345"}])
@pytest.mark.parametrize("what", ["-1", "x.tar.zst"])
def test_sec_76_debugger_has_nothing_of_roots_terminal(
    place: Path, caller: dict[str, str], what: str
) -> None:
    write_debugger(place, HOSTILE)
    argument = str(place / what) if what.endswith("zst") else what
    with Outer(place, argument, SECRET="s", **caller) as outer:
        session, terminal = outer.expect(r"shell (\d+) (\S+) \d+\n").groups()
        descriptors = outer.expect(r"descriptors (.+)\n")[1].split()
        assert outer.expect(r"session (\d+)\n")[1] != session
        terminals = outer.expect(r"terminals (.+)\n")[1].split()
        assert terminal not in terminals
        assert all(name.startswith("/dev/pts/") for name in terminals)
        assert outer.expect(r"outer (\w+)\n")[1] == "no"
        # 0 to 2, the core, the directory of its files, and the list itself
        assert len(descriptors) == 6
        ids = outer.expect(r"secret None ids (.+)\n")[1].split()
        assert len(set(ids)) == 1
        assert ids[0] == caller.get("SUDO_UID", ids[0])
        outer.expect(r"done\n")
        outer.expect(r"ended 0 restored left 0\n")
        assert "typed" not in outer.shown.replace("echo typed", "")


def test_sec_76_debugger_without_a_terminal_gets_none(place: Path) -> None:
    """Its output is the terminal's, its input is not."""
    write_debugger(place, HOSTILE)
    inner = " ".join([*command(place, "-1"), "</dev/null"])
    env = variables(place)
    child, terminal = pty.fork()
    if child == 0:
        os.execve("/bin/sh", ["/bin/sh", "-c", f"{inner}; echo ended $?; tty"], env)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the end
        while data := os.read(terminal, 65536):
            shown += data
    os.close(terminal)
    os.waitpid(child, 0)
    assert b"terminals none none none\r\n" in shown
    assert b"outer no\r\n" in shown
    assert b"done\r\nended 0\r\n/dev/pts/" in shown


def test_debugger_on_a_terminal_is_as_without_crashctl(place: Path) -> None:
    write_debugger(place, INTERACTIVE)
    with Outer(place, "-1") as outer:
        outer.expect(r"shell .+\n")
        outer.expect("ready\n")
        outer.type("hello\n")
        outer.expect("hello\n")  # the echo is the pty's
        outer.expect("echo HELLO\n")
        outer.type("\x03")
        outer.expect("interrupted\n")
        termios.tcsetwinsize(outer.terminal, (33, 77))
        outer.type("size\n")
        outer.expect("size 77 33\n")
        outer.type("\x1a")
        outer.expect("stopped restored\n")
        outer.type("fg\n")
        outer.type("again\n")
        outer.expect("echo AGAIN\n")
        outer.type("\x04")
        outer.expect(r"ended 3 restored left 0\n")


def test_debugger_whose_crashctl_is_killed_gives_the_terminal_back(place: Path) -> None:
    write_debugger(place, INTERACTIVE)
    with Outer(place, "-1") as outer:
        crashctl = int(outer.expect(r"shell \S+ \S+ (\d+)\n")[1])
        outer.expect("ready\n")
        started = below(crashctl)
        os.kill(crashctl, signal.SIGKILL)
        outer.expect(r"ended -9 \w+ left 0\n")
        wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in started), 20, "all gone")
        flags = termios.tcgetattr(outer.terminal)[3]
        assert flags & termios.ICANON and flags & termios.ECHO


def test_gdb_on_a_terminal_edits_lines_and_is_interrupted(place: Path) -> None:
    with Outer(place, "-1") as outer:
        outer.expect(r"\(gdb\) ")
        outer.type("print 6*8\b7\n")
        outer.expect(r"\$1 = 42\n")
        outer.type("python import time; time.sleep(600)\n")
        time.sleep(0.5)  # the command is read, not shown
        outer.type("\x03")
        outer.expect(r"\(gdb\) ")
        outer.type("quit\n")
        outer.expect(r"ended 0 restored left 0\n")


def test_debug_of_a_program_with_the_longest_name(place: Path) -> None:
    write_debugger(place, WAITING.replace("exec sleep 60", "exit 7"))
    paths = Paths(place / "root")
    exe = b"/usr/bin/" + b"n" * 250 + b" (deleted)"
    crash = add_crash(paths, 1, exe=exe)
    with Index.open(paths.index) as index:
        index.put([crash])
    done = subprocess.run(
        command(place, crash.id), capture_output=True, text=True, env=variables(place), check=False
    )
    assert done.returncode == 7, done.stderr
    assert "no symbols" in done.stderr and "Traceback" not in done.stderr


def test_sec_73_a_directory_that_its_user_can_rename_takes_no_core_of_roots(place: Path) -> None:
    write_debugger(place, WAITING.replace("exec sleep 60", "exit 7"))
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    env = variables(place) | {"TMPDIR": str(theirs)}
    done = subprocess.run(
        command(place, "-1"), capture_output=True, text=True, env=env, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{theirs} belongs to uid 65534" in done.stderr and "unset TMPDIR" in done.stderr
    assert list(theirs.iterdir()) == []


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Each test leaves no process of a loaned id behind; init takes its time to reap them."""
    yield
    wait_until(lambda: not any(map(is_on_loan, Path("/proc").iterdir())), 20, "no such process")


def is_on_loan(process: Path) -> bool:
    with contextlib.suppress(OSError):
        return process.name.isdigit() and process.stat().st_uid in IDS
    return False
