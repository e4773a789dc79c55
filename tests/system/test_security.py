"""What an attacker on the host can try, tried: real users, real files, the real daemon. The names
are those of the table in SECURITY.md.
"""

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.kdumps import save
from tests.running import DEFAULT_CONFIG, Daemon, wait_until
from tests.system.conftest import raise_core_limit

NOBODY = 65534


@pytest.fixture
def root(core_pattern_lock: None) -> Iterator[Path]:
    """A root that other users can walk through, as / is."""
    path = Path(f"/tmp/cds{os.getpid()}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(root: Path) -> Iterator[Daemon]:
    # before it starts: a directory that appears later is found at the next scan, a minute later
    (root / "var/crash").mkdir(parents=True, exist_ok=True)
    with Daemon(root, config=DEFAULT_CONFIG) as running:
        yield running


def become(uid: int) -> None:
    """Become a user, with cores allowed; for a forked child."""
    raise_core_limit()
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def die_as(uid: int, command: list[str], **options: Any) -> int:
    """Run a command as a user, until it is dead of a signal; give its pid."""

    with subprocess.Popen(command, preexec_fn=lambda: become(uid), **options) as child:
        assert child.wait(30) < 0
    return child.pid


CRASH = ["/bin/sh", "-c", "kill -SEGV $$"]


def caught(daemon: Daemon, pid: int) -> dict[str, Any]:
    """Wait for a crash, and give all that is known of it."""
    wait_until(
        lambda: any(c["pid"] == pid and c["state"] != "capturing" for c in daemon.seen()),
        90,  # storers are nice 19: on a busy machine a large record takes its time
        f"pid {pid} is recorded",
    )
    done = daemon.crashctl("info", "--json", f"PID={pid}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def as_nobody(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run crashctl as nobody."""

    return subprocess.run(
        [sys.executable, "-m", "crashd.cli", "--root", str(daemon.paths.root), *arguments],
        preexec_fn=lambda: become(NOBODY),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def scrape(daemon: Daemon) -> str:
    with urllib.request.urlopen(daemon.metrics_url(), timeout=10) as answer:
        text: str = answer.read().decode()
    return text


# -- who may see what ------------------------------------------------------------------------------


def test_sec_01_core_of_a_setuid_program_is_roots_alone(daemon: Daemon, root: Path) -> None:
    program = root / "suid"
    shutil.copy(shutil.which("sleep") or "", program)
    program.chmod(0o4755)
    child = subprocess.Popen(
        [program, "60"],
        preexec_fn=lambda: become(NOBODY),
    )
    wait_until(lambda: b"suid" in Path(f"/proc/{child.pid}/comm").read_bytes(), 20, "it runs")
    os.kill(child.pid, 11)
    child.wait(10)
    crash = caught(daemon, child.pid)
    assert crash["dumpable"] == 2
    assert crash["owner_uid"] is None
    assert as_nobody(daemon, "info", crash["id"]).returncode == 1
    assert as_nobody(daemon, "dump", crash["id"], "-o", "/tmp/never").returncode == 1
    core = daemon.paths.crashes / crash["id"] / "core.zst"
    assert (core.stat().st_uid, stat.S_IMODE(core.stat().st_mode)) == (0, 0o600)
    assert stat.S_IMODE(core.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("dumpable_again", [False, True])
def test_sec_03_core_of_a_process_that_gave_up_root_is_roots_alone(
    daemon: Daemon, dumpable_again: bool
) -> None:
    again = "import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0);" if dumpable_again else ""
    code = f"import os, signal; os.setresuid(65534, 65534, 65534); {again}os.kill(os.getpid(), 11)"
    pid = die_as(0, ["/usr/bin/python3", "-c", code])
    crash = caught(daemon, pid)
    assert crash["owner_uid"] is None
    assert as_nobody(daemon, "info", crash["id"]).returncode == 1


def test_own_crash_is_seen_by_its_user_and_by_no_other(daemon: Daemon) -> None:
    mine, others = die_as(NOBODY, CRASH), die_as(1234, CRASH)
    assert caught(daemon, mine)["owner_uid"] == NOBODY
    seen = as_nobody(daemon, "list", "--json")
    assert [crash["pid"] for crash in json.loads(seen.stdout)] == [mine]
    assert as_nobody(daemon, "info", caught(daemon, others)["id"]).returncode == 1


def test_sec_09_crash_in_a_directory_of_roots_leaves_nothing_there(
    daemon: Daemon, root: Path
) -> None:
    directory = root / "cron.d"
    directory.mkdir()
    pid = die_as(NOBODY, CRASH, cwd=directory)
    assert caught(daemon, pid)["cwd"] == str(directory)
    assert os.listdir(directory) == []


# -- names that are not names ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [b"-p1 --dump-mode=1 $(id)", b"a\nb\x1b[2J", b"\xff\xfe" * 100, b" -d1 --pidfd=0", b"%d%P%F"],
    ids=["options", "escape", "binary", "spoof", "percent"],
)
def test_sec_10_12_executable_of_any_name_is_one_row_and_one_directory(
    daemon: Daemon, root: Path, name: bytes
) -> None:
    program = os.fsencode(root) + b"/" + name
    shutil.copy(b"/bin/dash", program)
    pid = die_as(NOBODY, [program, "-c", "kill -SEGV $$"])  # type: ignore[list-item]
    crash = caught(daemon, pid)
    assert len(daemon.crashes()) == 1
    assert os.listdir(daemon.paths.crashes) == [crash["id"]]
    shown = daemon.crashctl("info", crash["id"]).stdout + daemon.crashctl("list").stdout
    assert "\x1b" not in shown
    assert daemon.crashctl("verify").stdout == ""


@pytest.mark.parametrize("name", ["../../etc/passwd", "%2e%2e", "id\n", "-", "--", "\x1b"])
def test_sec_11_ids_that_are_none_are_refused(daemon: Daemon, name: str) -> None:
    for verb in ("info", "dump", "delete"):
        done = daemon.crashctl(verb, "--", name, check=False)
        assert done.returncode in (1, 2), (verb, done.stderr)
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize("comm", [b"a) S 1 1 \nUid:\t0", b'x"} 1\nfake 9', b"../../x\n="])
def test_sec_13_14_comm_forges_neither_uid_nor_metric(daemon: Daemon, comm: bytes) -> None:
    code = (
        "import os, signal, sys\n"
        f"open('/proc/self/comm', 'wb').write({comm!r})\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    crash = caught(daemon, die_as(NOBODY, ["/usr/bin/python3", "-c", code]))
    assert (crash["uid"], crash["gid"]) == (NOBODY, NOBODY)
    text = scrape(daemon)
    assert "fake" not in text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=False)
    assert done.returncode == 0


def test_sec_15_host_name_of_a_namespace_is_text(daemon: Daemon) -> None:
    code = "import socket, os; socket.sethostname(b'x\\n../y'); os.kill(os.getpid(), 11)"
    pid = die_as(0, ["unshare", "-u", "/usr/bin/python3", "-c", code])
    crash = caught(daemon, pid)
    assert crash["nodename"].startswith("x") and crash["nodename"].endswith("y")
    assert os.listdir(daemon.paths.crashes) == [crash["id"]]


def test_sec_16_environment_is_data(daemon: Daemon, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    environ = {
        b"A": b"x\nCOREDUMP_UID=0",
        b"PYTHONPATH": os.fsencode(tmp_path),
        b"LD_PRELOAD": b"/nonexistent.so",
        b"BIG": b"x" * (100 << 10),
        b"API_TOKEN": b"very-secret",
    }
    (tmp_path / "json.py").write_text(f"open({str(canary)!r}, 'w')\n")
    pid = die_as(NOBODY, CRASH, env=environ)
    crash = caught(daemon, pid)
    assert crash["uid"] == NOBODY
    assert not canary.exists()
    record = (daemon.paths.crashes / crash["id"] / "crash.json").read_text()
    assert "very-secret" not in record


# -- /var/crash ------------------------------------------------------------------------------------


def make_nobodys(path: Path) -> None:
    for found in (path, *path.rglob("*")):
        os.chown(found, NOBODY, NOBODY, follow_symlinks=False)


def test_sec_20_21_planted_dumps_are_not_opened_and_block_nothing(
    daemon: Daemon, root: Path
) -> None:
    crash = root / "var/crash"
    crash.mkdir(parents=True, exist_ok=True)
    crash.chmod(0o1777)
    os.symlink("/etc", crash / "202501010101")
    kinds: dict[str, Callable[[Path], None]] = {
        "02": lambda p: os.symlink("/etc/shadow", p),
        "03": lambda p: os.mkfifo(p),
        "04": lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
        "05": lambda p: p.mkdir(),
        "06": lambda p: os.link(root / "etc/crashd/crashd.toml", p),
    }
    for number, make in kinds.items():
        directory = root / f"2025010101{number}"
        directory.mkdir()
        make(directory / f"dump.2025010101{number}")
        directory.rename(crash / directory.name)  # an empty one would be a dump that failed
    sock = crash / "202501010107"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(sock))
    theirs = save(root, "202501010108")
    make_nobodys(theirs)
    theirs.rename(crash / theirs.name)  # root's for no moment
    good = save(crash, "202601010101")
    wait_until(lambda: len(daemon.seen("kernel")) == 1, 20, "the good one is there")
    assert daemon.crashes()[0]["kernel"]["path"] == str(good)
    assert "crashd_kdump_dumps" in scrape(daemon)
    pid = die_as(NOBODY, CRASH)
    assert caught(daemon, pid)["state"] == "complete"
    assert len(os.listdir(crash)) == 9


def test_sec_23_planted_dumps_push_no_real_one_out(root: Path) -> None:
    crash = root / "var/crash"
    crash.mkdir(parents=True)
    crash.chmod(0o1777)
    for number in range(50):
        make_nobodys(save(crash, f"2999{number // 28 + 1:02}{number % 28 + 1:02}0000"))
    real = [save(crash, f"20260101010{number}") for number in range(3)]
    config = DEFAULT_CONFIG + "[retention.kernel]\nmax_count = 2\nkeep_free = 0\n"
    with Daemon(root, config=config) as daemon:
        wait_until(lambda: not real[0].exists(), 30, "the oldest is deleted")
        wait_until(lambda: len(daemon.seen("kernel")) == 3, 20, "all are shown")
    assert [path.exists() for path in real] == [False, True, True]
    assert len(os.listdir(crash)) == 52


def test_sec_24_nothing_of_the_crashed_processs_is_run(daemon: Daemon, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = f"open({str(canary)!r}, 'w').close()\n"
    for name in ("site.py", "json.py", "sitecustomize.py", "usercustomize.py", "encodings.py"):
        (tmp_path / name).write_text(evil)
    gdb = tmp_path / "gdb"
    gdb.write_text(f"#!/bin/sh\ntouch {canary}\n")
    gdb.chmod(0o755)
    tmp_path.chmod(0o755)
    environ = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PATH": str(tmp_path)}
    pid = die_as(0, CRASH, cwd=tmp_path, env=environ)
    assert caught(daemon, pid)["state"] == "complete"
    assert not canary.exists()


def test_sec_30_names_squatted_in_shared_directories_hold_nothing_up(root: Path) -> None:
    squatted = [Path(f"/tmp/crashd{suffix}") for suffix in ("", ".lock", "-core", "d.lock")]
    made = [path for path in squatted if not path.exists()]
    for path in made:
        path.touch()
        os.chown(path, NOBODY, NOBODY)
    try:
        with Daemon(root, config=DEFAULT_CONFIG) as daemon:
            pid = die_as(NOBODY, CRASH)
            assert caught(daemon, pid)["state"] == "complete"
    finally:
        for path in made:
            path.unlink()


def test_sec_41_sockets_of_roots_are_closed_to_users(daemon: Daemon) -> None:
    path = daemon.paths.handoff_socket
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code = f"import socket; s = socket.socket(1, 5); s.connect({str(path)!r})"
    command = ["/usr/bin/python3", "-c", code]

    def connect() -> str:
        done = subprocess.run(
            command,
            preexec_fn=lambda: os.setresuid(NOBODY, NOBODY, NOBODY),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr

    assert "PermissionError" in connect()
    # and should its mode ever be wrong
    for directory in (path, *path.parents):
        if str(directory).startswith(str(daemon.paths.root)):
            directory.chmod(0o777)
    assert connect() == ""
    wait_until(lambda: f"hand-over by uid {NOBODY}" in daemon.log.read_text(), 20, "refused")


def test_sec_50_pager_of_the_environment_is_not_run(daemon: Daemon, tmp_path: Path) -> None:
    pid = die_as(NOBODY, CRASH)
    crash = caught(daemon, pid)
    canary = tmp_path / "p"
    environ = {**os.environ, "PAGER": f"sh -c 'touch {canary}'", "LESSOPEN": f"|touch {canary}"}
    command = [sys.executable, "-m", "crashd.cli", "--root", str(daemon.paths.root), "info"]
    done = subprocess.run(
        ["script", "-qec", " ".join([*command, crash["id"]]), "/dev/null"],
        env=environ,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert not canary.exists()


def test_sec_70_many_names_make_no_more_series(daemon: Daemon) -> None:
    before = [line.rpartition(" ")[0] for line in scrape(daemon).splitlines()]
    for number in range(30):
        code = f"printf x{number} >/proc/self/comm; kill -SEGV $$"
        die_as(NOBODY, ["/bin/sh", "-c", code])
    daemon.wait_for(30)
    assert [line.rpartition(" ")[0] for line in scrape(daemon).splitlines()] == before
