"""What a user holds open, makes long, or reads slowly costs that user: real users, the real daemon.
The names are those of the table in SECURITY.md.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crashd.domain.crash.boundedrecord import METADATA_BYTES, RECORD_BYTES
from crashd.domain.crash.model import Core, Crash, State, encode, to_json
from crashd.store import entry as entries
from crashd.store.entry import RECORD, RECORD_MAX
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash
from tests.conftest import CorePatternOwner
from tests.running import DEFAULT_CONFIG, PLAIN_CONFIG, Daemon, wait_until
from tests.system.test_bounds import become, crashctl_as, run_as
from tests.system.test_security import caught

MIB = 1 << 20
ONE = 1234
ROOM = 300 * MIB


@pytest.fixture
def root(core_pattern_owner: CorePatternOwner) -> Iterator[Path]:
    """A root of 300 MiB that other users can walk through, as / is."""
    path = Path(f"/tmp/cdh{os.getpid()}")
    path.mkdir(mode=0o755)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=755", "tmpfs", path], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)
        path.rmdir()


def free_bytes(root: Path) -> int:
    disk = os.statvfs(root)
    return disk.f_bavail * disk.f_frsize


# -- records ---------------------------------------------------------------------------------------

MAPS_MAX = 2600
WORST = """
import mmap, os, resource, signal, sys
os.chdir(sys.argv[1])
for _ in range(15):
    os.mkdir(b"\\xff" * 250)
    os.chdir(b"\\xff" * 250)
fd = os.open(b"\\x01\\xff" * 100, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
maps = [mmap.mmap(fd, 4096, prot=mmap.PROT_READ) for _ in range(int(sys.argv[2]))]
os.kill(os.getpid(), signal.SIGSEGV)
"""
"""Maps a file whose name is as long as a name may be, and becomes five bytes of JSON a byte."""


def die_of_many_maps(directory: Path) -> int:
    """Crash as a user, who has thousands of mappings; return the pid."""
    directory.mkdir()
    os.chown(directory, ONE, ONE)
    command = [sys.executable, "-I", "-c", WORST, str(directory), str(MAPS_MAX)]
    with subprocess.Popen(command, preexec_fn=lambda: become(ONE, ONE)) as child:
        assert child.wait(60) == -signal.SIGSEGV
    return child.pid


def test_sec_78_record_is_bounded_as_it_is_read(root: Path) -> None:
    elsewhere = Path(f"/tmp/cdw{os.getpid()}")
    elsewhere.mkdir(mode=0o755)
    keep_free = 100 * MIB
    config = PLAIN_CONFIG.replace("enabled = false", "enabled = true") + (
        "[analysis]\nenabled = false\n"
        f'[retention.process]\nkeep_free = {keep_free}\nmax_use = "infinity"\n'
        '[limiter.uid]\nfull = 3\nmini = 0\nper = "24h"\n'
    )
    try:
        with Daemon(root, config=config) as daemon:
            daemon.crashctl("install")
            pids = [die_of_many_maps(elsewhere / str(number)) for number in range(5)]
            found = [caught(daemon, pid) for pid in pids]
            assert free_bytes(root) >= keep_free
            sizes = {c["pid"]: record_size(daemon.paths, c["id"]) for c in found}
            for crash in found:
                most = RECORD_BYTES if crash["core"]["path"] else METADATA_BYTES
                assert sizes[crash["pid"]] <= most
                assert re.search(
                    r"maps after \d+ of (8\d{6}|16383) bytes", crash["warnings"][-1]
                ), crash
            assert {c["state"] for c in found} == {"complete", "metadata-only"}, "kept, and counted"
            seen = crashctl_as(daemon, ONE, ONE, "info", "--json", found[0]["id"])
            assert json.loads(seen.stdout)["maps"] == found[0]["maps"]
            assert json.loads(daemon.crashctl("verify", "--json").stdout) == []
            daemon.crashctl("uninstall")
        assert daemon.crashctl("reindex").stdout.startswith("5 ")
    finally:
        shutil.rmtree(elsewhere)


def record_size(paths: Paths, crash_id: str) -> int:
    return (paths.crashes / crash_id / RECORD).stat().st_size


def test_sec_78_record_that_an_earlier_crashd_made_too_large_is_mended(root: Path) -> None:
    paths = Paths(root)
    crash = store(paths, 1, state=State.CAPTURING)
    with (paths.crashes / crash.id / RECORD).open("ab") as file:
        file.truncate(RECORD_MAX + 1)
    (finding,) = json.loads(crashctl_verify(root))
    assert (finding["kind"], finding["subject"]) == ("bad-record", crash.id)
    with Daemon(root, "--no-register", config=DEFAULT_CONFIG) as daemon:
        (found,) = daemon.wait_for(1)
        assert (found["pid"], found["state"]) == (crash.pid, "lost"), "what is in its core is none"
        assert record_size(paths, crash.id) < METADATA_BYTES
        daemon.crashctl("delete", "--yes", crash.id)


def crashctl_verify(root: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "crashd.cli", "--root", str(root), "verify", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


# -- readers ---------------------------------------------------------------------------------------

HOLD = """
import array, json, socket, struct, sys
held, fds, heard = [], 0, []
for request in json.loads(sys.argv[2]):
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(sys.argv[1])
    raw = json.dumps(request).encode()
    peer.sendall(struct.pack("<I", len(raw)) + raw)
    data, ancillary, _, _ = peer.recvmsg(100, socket.CMSG_SPACE(64))
    fds += len(ancillary)
    heard.append(data[4:].decode("utf-8", "replace"))
    held.append((peer, ancillary))
print(json.dumps({"fds": fds, "heard": heard}), flush=True)
sys.stdin.read()
"""
"""Asks, takes the first bytes and all descriptors of each answer, and reads no more."""


@contextlib.contextmanager
def holding(daemon: Daemon, requests: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Have a user ask, and hold what comes; give what came."""
    socket_path = str(daemon.paths.control_socket)
    with subprocess.Popen(
        [sys.executable, "-I", "-c", HOLD, socket_path, json.dumps(requests)],
        preexec_fn=lambda: become(ONE, ONE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        try:
            yield json.loads(child.stdout.readline())
        finally:
            child.stdin.close()


CORE_BYTES = 24 * MIB


def store(paths: Paths, number: int, **more: Any) -> Crash:
    """Store a crash of a user, with a core."""
    entries.prepare(paths)
    core = Core("core.zst", CORE_BYTES, CORE_BYTES, CORE_BYTES, CORE_BYTES, True)
    crash = build_crash(number, sequence=number + 1, owner_uid=ONE, uid=ONE, gid=ONE, core=core)
    crash = replace(crash, **more)
    with entries.create(paths, crash) as entry, Index.open(paths.index) as index:
        fd = entry.create_core()
        os.write(fd, b"c" * CORE_BYTES)
        os.close(fd)
        entry.commit_core()
        entry.write(crash, sync=False)
        index.put([crash])
    return crash


def test_sec_79_held_core_costs_nobody_space(root: Path) -> None:
    paths = Paths(root)
    crashes = [store(paths, number) for number in range(6)]
    used = ROOM - free_bytes(root)
    assert used > 6 * CORE_BYTES
    config = DEFAULT_CONFIG + '[retention.process]\nkeep_free = "1M"\nmax_use = '
    with Daemon(root, "--no-register", config=config + '"infinity"\n') as daemon:
        wait_until(lambda: len(daemon.seen()) == 6, 20, "all are there")
        with holding(daemon, [{"verb": "open-core", "id": crash.id} for crash in crashes]) as held:
            assert held["fds"] == 0, "a descriptor can be kept for ever"
            assert sum("size_bytes" in text for text in held["heard"]) == 2
            assert sum("are being read by uid 1234" in text for text in held["heard"]) == 4
            daemon.paths.config_file.write_text(config + '"50M"\n')
            os.kill(daemon.pid, signal.SIGHUP)
            wait_until(lambda: ROOM - free_bytes(root) < 60 * MIB, 30, "the space is there again")
    assert sum(c["state"] == "evicted" for c in daemon.crashes()) >= 4


def test_sec_79_user_reads_own_core_whole(root: Path) -> None:
    """From a copy of their own: a debugger, and `bundle`, seek in it."""
    crash = store(Paths(root), 1)
    with Daemon(root, "--no-register", config=DEFAULT_CONFIG) as daemon:
        wait_until(lambda: len(daemon.seen()) == 1, 20, "it is there")
        done = run_as(ONE, ONE, "-c", FETCH, str(daemon.paths.control_socket), crash.id)
        assert done.stdout == f"{CORE_BYTES} 0 b'cc'\n", done.stderr


FETCH = """
import os, sys
from pathlib import Path
from crashd.cli.control import ControlClient
fd = ControlClient(Path(sys.argv[1])).fetch({"verb": "open-core", "id": sys.argv[2]})
status = os.fstat(fd)
print(status.st_size, status.st_nlink, os.pread(fd, 2, status.st_size - 2))
"""


def memory_bytes(pid: int) -> int:
    """Return the most anonymous memory that a process had resident so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10


READERS = 8


@pytest.mark.parametrize("legacy", [False, True])
def test_sec_85_slow_readers_cost_no_memory(root: Path, legacy: bool) -> None:
    """Of a record as it is written, and of one of 29 MiB, as earlier crashds wrote."""
    paths = Paths(root)
    crash = store(paths, 1, maps=b"m" * (3 * MIB))
    if legacy:
        large = replace(crash, maps=b"m" * (29 * MIB))
        (paths.crashes / crash.id / RECORD).write_bytes(encode(to_json(large)))
    with Daemon(root, "--no-register", config=DEFAULT_CONFIG) as daemon:
        wait_until(lambda: len(daemon.seen()) == 1, 20, "it is there")
        time.sleep(1)
        before = memory_bytes(daemon.pid)
        verbs = ["info"] * READERS
        with holding(daemon, [{"verb": verb, "id": crash.id} for verb in verbs]) as held:
            assert all('"ok":true' in text for text in held["heard"])
            grown = memory_bytes(daemon.pid) - before
            assert grown < (150 if legacy else 48) * MIB, f"{grown / MIB:.0f} MiB more"
            again = crashctl_as(daemon, ONE, ONE, "list")
            assert (again.returncode, again.stdout) == (4, ""), "eight connections are all theirs"
            assert "Ready: yes" in daemon.crashctl("status", check=False).stdout


def test_sec_85_lists_that_nobody_reads_are_held_for_few(root: Path) -> None:
    paths = Paths(root)
    store(paths, 0)
    with Index.open(paths.index) as index:
        for start in range(0, 6000, 500):
            crashes = [
                build_crash(n, owner_uid=ONE, gid=ONE, argv=(b"a" * 1000,))
                for n in range(start, start + 500)
            ]
            index.put(crashes)
    with Daemon(root, "--no-register", config=DEFAULT_CONFIG) as daemon:
        before = memory_bytes(daemon.pid)
        requests = [{"verb": "list", "query": {"limit": 2500}}] * READERS
        with holding(daemon, requests) as held:
            served = sum('"ok":true' in text for text in held["heard"])
            refused = sum("wait to be read" in text for text in held["heard"])
            assert (served + refused, served) == (READERS, 1)
            assert memory_bytes(daemon.pid) - before < 96 * MIB
