"""What a user's crash may reach, leave behind and use up: real users, real files, the real daemon.
The names are those of the table in SECURITY.md.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashd.corehandler import SHARE_USED, put_file
from crashd.store.paths import Paths
from tests.builders.kdumps import MAKERS, capture, kernel_log, make_old
from tests.conftest import CorePatternOwner
from tests.integration.handler import make_root, start_handler
from tests.running import DEFAULT_CONFIG, PLAIN_CONFIG, Daemon, wait_until
from tests.system.conftest import raise_core_limit
from tests.system.fswatch import MakeWatch, RunWatch
from tests.system.test_security import CRASH, NOBODY, as_nobody, caught, die_as
from tests.yardstick import slowness

MIB = 1 << 20
ONE, OTHER, USERS = 1234, 1235, 100
"""Two users whose primary group is one."""


@pytest.fixture
def root(core_pattern_owner: CorePatternOwner) -> Iterator[Path]:
    """A root that other users can walk through, as / is."""
    path = Path(f"/tmp/cdb{os.getpid()}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(root: Path) -> Iterator[Daemon]:
    with Daemon(root, config=DEFAULT_CONFIG) as running:
        yield running


# -- who may see what ------------------------------------------------------------------------------


def become(uid: int, gid: int) -> None:
    """Become a user of a group; for a forked child."""
    raise_core_limit()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def crashctl_as(
    daemon: Daemon, uid: int, gid: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run crashctl as a user of a group."""
    return run_as(uid, gid, "-m", "crashd.cli", "--root", str(daemon.paths.root), *arguments)


ASK = """
import json, socket, sys
from crashd.base import messages
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(messages.pack(json.loads(sys.argv[2])))
print(peer.recv(65536))
"""
"""Asks the daemon without crashctl, which looks for what there is first."""


def run_as(uid: int, gid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user of a group."""
    return subprocess.run(
        [sys.executable, *arguments],
        preexec_fn=lambda: become(uid, gid),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def assert_roots_alone(paths: Paths) -> int:
    """Check every name of the store: root's, closed to all others, without ACL; count them."""
    found = [paths.state_dir, *paths.state_dir.rglob("*")]
    for path in found:
        status = path.lstat()
        kind = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert stat.S_IMODE(status.st_mode) == kind, (path, oct(status.st_mode))
        assert os.listxattr(path, follow_symlinks=False) == [], path
    return len(found)


def test_sec_05_shared_primary_group_opens_nothing(daemon: Daemon) -> None:
    with subprocess.Popen(CRASH, preexec_fn=lambda: become(ONE, USERS)) as child:
        assert child.wait(30) < 0
    crash = caught(daemon, child.pid)
    assert (crash["owner_uid"], crash["gid"]) == (ONE, USERS)
    assert assert_roots_alone(daemon.paths) > 5
    seen = crashctl_as(daemon, ONE, USERS, "list", "--json")
    assert [c["id"] for c in json.loads(seen.stdout)] == [crash["id"]]
    for uid in (OTHER, NOBODY):
        assert json.loads(crashctl_as(daemon, uid, USERS, "list", "--json").stdout) == []
        for verb, asked in (("info", "info"), ("dump", "open-core")):
            done = crashctl_as(daemon, uid, USERS, verb, crash["id"])
            assert (done.returncode, done.stdout) == (1, ""), done.stderr
            request = json.dumps({"verb": asked, "id": crash["id"]})
            answer = run_as(uid, USERS, "-c", ASK, str(daemon.paths.control_socket), request)
            assert '"ok":false' in answer.stdout.replace(" ", ""), answer


def test_sec_05b_crash_named_as_a_service_shows_no_line_of_its_log(root: Path) -> None:
    program, directory = root / "sshd", root / "of-nobody"
    shutil.copy("/bin/dash", program)
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    secrets = [f"roots-{kind}-{os.getpid()}" for kind in ("log", "argument", "variable")]
    command = [str(program), "-c", "kill -SEGV $$"]
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        say(f"sshd[{os.getpid()}]: session opened, {secrets[0]}")
        theirs = die_as(0, [*command, secrets[1]], env={"NOTE": secrets[2]})
        say(f"sshd[{theirs}]: segfault, {secrets[0]}")
        mine = die_as(NOBODY, command)
        wait_until(
            lambda: [c["signature"] is None for c in daemon.seen()] == [False] * 2, 30, "both"
        )
        hidden, crash = caught(daemon, theirs), caught(daemon, mine)
        assert secrets[1] in json.dumps(hidden) and secrets[2] in json.dumps(hidden)
        assert (crash["comm"], crash["owner_uid"]) == ("sshd", NOBODY)
        assert hidden["signature"] == crash["signature"], "as alike as two can be"
        told = ""
        for verb in ("list --json", "top --json", "stats", "info COMM=sshd", "info --json -1"):
            done = as_nobody(daemon, *verb.split())
            assert done.returncode == 0, (verb, done.stderr)
            told += done.stdout + done.stderr
        core = directory / "core"
        assert as_nobody(daemon, "dump", crash["id"], "-o", str(core)).returncode == 0
        assert as_nobody(daemon, "info", hidden["id"]).returncode == 1
        shown = json.loads(as_nobody(daemon, "info", "--json", "-1").stdout)
    for secret in (*secrets, hidden["id"]):
        assert secret not in told
        assert secret.encode() not in core.read_bytes()
    assert (shown["id"], shown["count_of_signature"]) == (crash["id"], 1)
    assert not shown.get("log")


def say(text: str) -> None:
    """Log a line where services of a host without journald do."""
    with open("/dev/kmsg", "w", encoding="ascii") as log:
        log.write(f"<6>{text}\n")


# -- what it leaves behind -------------------------------------------------------------------------


def family(pid: int) -> set[int]:
    """The pids of a process and of all that it started."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= family(int(child))
    return found


def test_sec_06_nothing_is_made_outside_of_the_store(daemon: Daemon, root: Path) -> None:
    directory = root / "everyones"
    directory.mkdir()
    directory.chmod(0o1777)
    daemon.crashctl("install")
    with MakeWatch(daemon.paths.handler) as watch:
        ours = family(daemon.pid)
        pids = [die_as(uid, CRASH, cwd=directory) for uid in (NOBODY, ONE, 0)]
        for pid in pids:
            assert caught(daemon, pid)["state"] == "complete"
        ours |= family(daemon.pid)
        daemon.stop()
        pids += [die_as(uid, CRASH, cwd=directory) for uid in (NOBODY, 0)]
        assert assert_roots_alone(daemon.paths) > 40, "what is spooled included"
        daemon.start()
        ours |= family(daemon.pid)
        daemon.wait_for(5)
        ours |= family(daemon.pid) | watch.ran
    assert len(watch.ran) == 5
    made = [Path(one.path) for one in watch.made if one.pid in ours]
    assert {path.parent.name for path in made} >= {"spool", "crashes"}
    store = (daemon.paths.state_dir, daemon.paths.runtime_dir, daemon.paths.handler.parent)
    outside = [path for path in made if not any(path.is_relative_to(place) for place in store)]
    assert outside == []
    assert os.listdir(directory) == []
    assert assert_roots_alone(daemon.paths) > 20
    assert daemon.crashctl("verify").stdout == ""
    daemon.crashctl("uninstall")


def test_sec_06_store_that_is_open_to_others_is_closed(root: Path) -> None:
    paths = Paths(root)
    for directory in (paths.state_dir, paths.crashes, paths.spool):
        directory.mkdir(parents=True)
        directory.chmod(0o777)
    with Daemon(root, config=DEFAULT_CONFIG) as daemon:
        pid = die_as(NOBODY, CRASH)
        assert caught(daemon, pid)["state"] == "complete"
        assert assert_roots_alone(paths) > 5


@pytest.mark.parametrize("name", ["state_dir", "crashes", "spool"])
def test_sec_06_store_that_is_anothers_is_refused(root: Path, name: str) -> None:
    directory: Path = getattr(Paths(root), name)
    directory.mkdir(parents=True)
    os.chown(directory, NOBODY, NOBODY)
    daemon = Daemon(root, config=DEFAULT_CONFIG)
    try:
        with pytest.raises(AssertionError, match=f"{directory} belongs to uid {NOBODY}"):
            daemon.start()
    finally:
        status = daemon.stop()
    assert status == 4
    assert os.listdir(directory) == []


@pytest.mark.parametrize("plant", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_sec_06_handler_writes_through_no_planted_link(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    target, entry = tmp_path / "target", tmp_path / "entry"
    target.write_text("of root")
    entry.mkdir()
    plant(target, entry / "meta")
    directory = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(FileExistsError):
            put_file("meta", b"anything", directory)
    finally:
        os.close(directory)
    assert target.read_text() == "of root"


def test_sec_06_spool_that_is_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    paths = make_root(root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths.spool.rmdir()
    paths.spool.symlink_to(elsewhere)
    run = start_handler(paths, ["7", "x", "11", "1800000000"])
    run.feed(b"core")
    assert run.wait() == 1, "it is lost, and told so"
    assert os.listdir(elsewhere) == []


@pytest.mark.parametrize(
    ("maker", "part", "words"),
    [
        ("kdump-utils", "log", "every user may read the kernel's log that was saved"),
        ("kdump-tools", "log", "every user may read the kernel's log that was saved"),
        ("kdump-utils", "dump", "every user may read the dump, which is the kernel's memory"),
        ("kdump-tools", "", None),
    ],
)
def test_sec_07_world_readable_kernel_log_is_told_and_not_copied_so(
    root: Path, maker: str, part: str, words: str | None
) -> None:
    saved = root / "var/crash"
    saved.mkdir(parents=True)
    list(capture(saved, MAKERS[maker], kernel_log() + b"[ 9.9] of-the-kernel\n"))
    directory = saved / MAKERS[maker].directory
    if part:
        (directory / getattr(MAKERS[maker], part)).chmod(0o644)
    make_old(directory)
    with Daemon(root, config=DEFAULT_CONFIG) as daemon:
        (row,) = daemon.wait_for(1, kind="kernel")
        crash = json.loads(daemon.crashctl("info", "--json", row["id"]).stdout)
        assert "of-the-kernel" in crash["log"][-1]
        assert crash["kernel"]["world_readable"] is (words is not None)
        told = [text for text in crash["warnings"] if "every user" in text]
        assert told == ([words] if words else [])
        assert assert_roots_alone(daemon.paths) > 5
        assert not words or words in daemon.crashctl("info", row["id"]).stdout
        done = as_nobody(daemon, "info", row["id"])
        assert (done.returncode, "of-the-kernel" in done.stdout) == (1, False)


# -- what it uses up -------------------------------------------------------------------------------

DISK_BYTES = 200 * MIB
KEEP_FREE_BYTES = 20 * MIB
RECORDS_BYTES = 4 * MIB
"""What is known of a crash is written down also where no core may be."""
SMALL_DISK = f"{DEFAULT_CONFIG}[retention.process]\nkeep_free = {KEEP_FREE_BYTES}\n"
ANOTHER = ["bash", "-c", "kill -SEGV $$"]
"""Another program: of several cores of one, all but the last may go for a flood."""
LARGE = "import os; kept = os.urandom(16 << 20) * 20; os.kill(os.getpid(), 11)"
"""320 MiB that zstd makes nothing of: its window is smaller than what is repeated."""


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """A file system of its own for the store."""
    image, point = root / "disk", Paths(root).state_dir
    point.mkdir(parents=True)
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


class FreeWatch:
    """Looks all the time how much a file system has left; `least` is the least that was seen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.least = DISK_BYTES

    def __enter__(self) -> "FreeWatch":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.002):
            self.least = min(self.least, free_bytes(self._path))


def free_bytes(path: Path) -> int:
    """Tell how much a file system has left."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def test_sec_31_flood_of_large_cores_leaves_room_and_others_cores(
    root: Path, small_disk: Path
) -> None:
    with Daemon(root, config=f'{SMALL_DISK}max_use = "infinity"\n') as daemon:
        first = caught(daemon, die_as(0, CRASH))
        assert first["state"] == "complete"
        with FreeWatch(small_disk) as watch:
            pids = [die_as(NOBODY, [sys.executable, "-c", LARGE]) for _ in range(20)]
            found = {c["pid"]: c for c in daemon.wait_for(21, seconds=120)}
        # by half of it a capture may go below, as long as other cores are deleted for it
        assert watch.least > KEEP_FREE_BYTES // 2 - RECORDS_BYTES, watch.least / MIB
        wait_until(lambda: free_bytes(small_disk) > KEEP_FREE_BYTES - RECORDS_BYTES, 20, "room")
        flood = [found[pid] for pid in pids]
        assert {c["state"] for c in flood} <= {"truncated", "evicted", "metadata-only"}
        assert "truncated" in {c["state"] for c in flood}
        cut = [c["capture"]["reason"] for c in flood if c["state"] != "evicted"]
        assert all(reason.endswith("(keep_free)") for reason in cut), cut
        last = caught(daemon, die_as(0, ANOTHER))
        assert last["state"] == "complete", (last["capture"], daemon.log.read_text())
        for crash in (first, last):
            daemon.crashctl("dump", crash["id"], "-o", str(root / crash["id"]))
        assert daemon.crashctl("verify", "--deep").stdout == ""


def test_sec_31_flood_while_the_daemon_is_away_leaves_room_and_others_cores(
    root: Path, small_disk: Path
) -> None:
    daemon = Daemon(root, config=SMALL_DISK)
    with daemon:
        daemon.crashctl("install")
        first = caught(daemon, die_as(0, CRASH))
    with FreeWatch(small_disk) as watch:
        pids = [die_as(NOBODY, [sys.executable, "-c", LARGE]) for _ in range(20)]
    assert watch.least > KEEP_FREE_BYTES - RECORDS_BYTES, watch.least / MIB
    with daemon:
        found = {c["pid"]: c for c in daemon.wait_for(21, seconds=60)}
        assert found[first["pid"]]["state"] == "complete", "not pushed out by what was spooled"
        # its largest may cost the flood others of its own
        flood = [found[pid] for pid in pids]
        assert "truncated" in {c["state"] for c in flood} <= {"truncated", "evicted"}
        cut = {c["capture"]["reason"] for c in flood if c["state"] == "truncated"}
        assert cut == {f"spooled: {SHARE_USED}"}
        daemon.crashctl("dump", first["id"], "-o", str(root / "core"))
        assert caught(daemon, die_as(0, ANOTHER))["state"] == "complete"
        assert daemon.crashctl("verify", "--deep").stdout == ""
        daemon.crashctl("uninstall")


HANDLER_SECONDS = 2
HOLD_SECONDS = 6
"""The daemon reads beside it, and shares the processors with whatever else runs."""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that has as much of everything as the kernel lets it."""
    program = tmp_path_factory.mktemp("heavy") / "heavy"
    source = Path(__file__).parent / "programs/heavy.c"
    subprocess.run(["gcc", "-O1", "-pthread", "-o", program, source], check=True)
    return program


def heavy_command(root: Path, program: Path, what: str) -> list[str]:
    """Give the command line of a process that is heavy in one way."""
    long = root.joinpath(*["d" * 250] * 4)
    long.mkdir(parents=True)
    (long / "mapped").write_bytes(b"x" * 4096)
    anyones = str(shutil.copy(program, root / "heavy"))
    commands = {
        "argument": ["x" * ((128 << 10) - 1)],
        "maps": ["heavy", "maps", str(long / "mapped")],
        "files": ["heavy", "files", "60000"],
        "threads": ["heavy", "threads", "3000"],
    }
    return [anyones, *commands[what]]


HEAVY = {
    "argument": ("cmdline is cut after 65536 bytes", True),
    "maps": (
        "maps is cut after 8388608 bytes; "
        r"cut to keep this record small: maps after \d{7} of 8388608 bytes",
        True,
    ),
    "files": (r"256 of \d{5} open files are listed", False),
    "threads": ("1024 of 3001 threads are named", True),
}
"""What is told of each, and whether the handler notes it too when it is alone."""


@pytest.mark.parametrize("away", [False, True], ids=["", "away"])
@pytest.mark.parametrize("what", list(HEAVY))
def test_sec_32_heavy_process_costs_no_more_than_its_share(
    root: Path, heavy: Path, what: str, away: bool
) -> None:
    executable, *argv = heavy_command(root, heavy, what)
    daemon = Daemon(root, config=DEFAULT_CONFIG)
    with daemon:
        daemon.crashctl("install")
        if away:
            daemon.stop()
        with (
            RunWatch(daemon.paths.handler) as watch,
            subprocess.Popen(argv, executable=executable, preexec_fn=become_heavy) as child,
        ):
            assert child.wait(60) == -signal.SIGSEGV
        if away:
            daemon.start()
        crash = caught(daemon, child.pid)
        (handler_seconds,) = watch.seconds
        slow = slowness()
        assert handler_seconds < HANDLER_SECONDS * slow
        assert (crash["capture"]["hold_seconds"] or 0) < HOLD_SECONDS * slow
        assert (crash["state"], crash["comm"]) == ("complete", "heavy")
        text, noted = HEAVY[what]
        told = "; ".join(crash["warnings"])
        assert re.fullmatch(text if noted or not away else "", told), told
        daemon.crashctl("uninstall")


def become_heavy() -> None:
    """Become nobody, who may open many files; for a forked child."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError):  # CAP_SYS_RESOURCE is not had everywhere
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 17, 1 << 17))
        hard = 1 << 17
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    become(NOBODY, NOBODY)
