"""Measure what crashd costs: `python -m tests.figures` (as root for the crashes; no sysctl is set).

Figures are medians of runs that alternate between the two sides, so that a machine whose speed
drifts drifts for both.
"""

import os
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from crashd.corehandler import RECEIPT
from crashd.domain.crash.model import Core, Crash, Kind, State, build_id_text
from crashd.store.entry import prepare
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.elfcore import CoreSegment, build_core
from tests.running import Daemon

PYTHON = "/usr/bin/python3"
ROWS = 100_000


def alternate(
    sides: Mapping[str, Callable[[], float]], runs: int, pause_seconds: float = 0
) -> dict[str, float]:
    """Run the sides in turn, with a pause before each; give each one's median."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, run in sides.items():
            time.sleep(pause_seconds)
            found[name].append(run())
    return {name: statistics.median(values) for name, values in found.items()}


def wall_ms(*command: str, stdin: Path = Path("/dev/null"), pidfd: int | None = None) -> float:
    """Start a program as the kernel does, no environment, and wait for it: milliseconds."""
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]]
    actions = [(os.POSIX_SPAWN_OPEN, 0, str(stdin), os.O_RDONLY, 0)]
    if pidfd is not None:
        actions.append((os.POSIX_SPAWN_DUP2, pidfd, 3))
    start = time.perf_counter()
    pid = os.posix_spawn(command[0], command, {}, file_actions=actions)
    os.waitpid(pid, 0)
    return (time.perf_counter() - start) * 1e3


def cpu_ms(*command: str) -> float:
    """Run a program, output thrown away: milliseconds of CPU, its own and the kernel's for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e3


def answer_at_once(server: socket.socket) -> None:
    """Give every handler its receipt, until the socket is closed."""
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        with peer:
            _, fds, _, _ = socket.recv_fds(peer, 1 << 16, 4)
            peer.send(RECEIPT)
        for fd in fds:
            os.close(fd)


def handler_start(root: Path) -> None:
    """Measure the handler against bare Python, each from its start to its exit.

    First with someone who answers at once: what the handler itself costs. Then with the daemon,
    which records the crash and has a worker take it before it answers.
    """
    paths = Paths(root / "alone")
    paths.runtime_dir.mkdir(parents=True)
    install_handler(paths)
    core = root / "core"
    core.write_bytes(build_core(segments=[CoreSegment(0x400000, bytes(400_000))]))
    pidfd, pid, now = os.pidfd_open(os.getpid()), str(os.getpid()), str(int(time.time()))
    arguments = (pid, "figures", "11", now, pid, pid, "0", "0", "0", "1", "3", "host")
    with (
        Daemon(root / "daemon", "--no-register") as daemon,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server,
    ):
        install_handler(daemon.paths)
        server.bind(str(paths.handoff_socket))
        server.listen(16)
        threading.Thread(target=answer_at_once, args=(server,), daemon=True).start()
        found = alternate(
            {
                "python3 -IS -c pass": lambda: wall_ms(PYTHON, "-IS", "-c", "pass"),
                "crashd-core, answered at once": lambda: wall_ms(
                    str(paths.handler), *arguments, stdin=core, pidfd=pidfd
                ),
                "crashd-core, answered by crashd": lambda: wall_ms(
                    str(daemon.paths.handler), *arguments, stdin=core, pidfd=pidfd
                ),
            },
            100,
            pause_seconds=0.05,  # so that the syncs of the crash before are over
        )
        server.shutdown(socket.SHUT_RDWR)
    bare, alone, whole = found.values()
    for name, value in found.items():
        print(f"{name:<40}{value:8.2f} ms")
    print(f"{'  the handler, more than bare Python':<40}{alone - bare:8.2f} ms (at most 3)")
    print(f"{'  with the daemon, more than bare Python':<40}{whole - bare:8.2f} ms")


def fill(paths: Paths, rows: int) -> None:
    """Fill an index with crashes of a thousand programs."""
    dice = random.Random(1)
    base = Crash("", Kind.PROCESS, State.COMPLETE, 0, "0123abcd" * 4, uid=0, signal=11)
    crashes = []
    for number in range(rows):
        time_ns = 1_790_000_000 * 10**9 + number * 10**9
        crash_id = build_id_text(time_ns, base.boot_id, number, dice.getrandbits(40))
        name = b"prog%d" % (number % 1000)
        crashes.append(
            replace(
                base,
                id=crash_id,
                time_ns=time_ns,
                pid=number,
                comm=name,
                exe=b"/usr/bin/" + name,
                argv=(name, b"--serve"),
                title=f"SIGSEGV in {name.decode()}",
                core=Core("core.zst", 10**6, 10**5, 10**6, 10**6, True),
            )
        )
    with Index.open(paths.index) as index:
        for start in range(0, rows, 5000):
            index.put(crashes[start : start + 5000])


def list_times(root: Path) -> None:
    """Measure `crashctl list -n 20` with nothing and with ROWS crashes in the index."""
    sides = {}
    for rows in (0, ROWS):
        paths = Paths(root / str(rows))
        prepare(paths)
        fill(paths, rows)
        root_option = ("--root", str(paths.root))
        command = (sys.executable, "-m", "crashd.cli", *root_option, "list", "-n", "20")
        sides[f"crashctl list -n 20, {rows} rows, CPU"] = lambda command=command: cpu_ms(*command)
    found = alternate(sides, 15)
    for name, value in found.items():
        print(f"{name:<40}{value:8.2f} ms")
    empty, full = found.values()
    print(f"{'  ratio':<40}{full / empty:8.2f} (at most 1.5)")


def idle_memory(root: Path) -> None:
    """Measure the idle daemon: its own memory, and that of all its processes."""
    with Daemon(root, "--no-register") as daemon:
        time.sleep(3)
        tree = [daemon.pid, *children(daemon.pid)]
        before = sum(cpu_ticks(pid) for pid in tree)
        time.sleep(10)
        ticks = sum(cpu_ticks(pid) for pid in tree) - before
        rss = memory_kib(daemon.pid, "Rss")
        pss = sum(memory_kib(pid, "Pss") for pid in tree)
    print(f"{'daemon, idle, RSS':<40}{rss / 1024:8.1f} MiB (aim: under 60)")
    print(f"{f'daemon and {len(tree) - 1} helpers, PSS':<40}{pss / 1024:8.1f} MiB")
    print(f"{'CPU of all in 10 idle seconds':<40}{ticks * 10:8d} ms")


def children(pid: int) -> list[int]:
    """List all descendants of a process."""
    direct = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*direct, *(c for child in direct for c in children(child))]


def cpu_ticks(pid: int) -> int:
    """Read user and system time of a process, in clock ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def memory_kib(pid: int, name: str) -> int:
    """Read one sum from smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise ValueError(name)


def main() -> None:
    """Measure and print everything."""
    root = Path(tempfile.mkdtemp(prefix="cd", dir="/tmp"))
    try:
        handler_start(root / "h")
        list_times(root / "l")
        idle_memory(root / "i")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
