"""Executables and libraries that only the crashed process could reach are kept for its analysis."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from crashd.daemon.capture.keepfiles import TIMEOUTS_MAX, _Keeper
from crashd.daemon.capture.options import Options
from crashd.daemon.capture.pace import Pace
from crashd.daemon.capture.timedread import Reader
from crashd.domain.elf.executables import Executable, is_kept_name
from crashd.store import entry as entries
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash
from tests.builders.elfcore import build_image
from tests.running import PLAIN_CONFIG, Daemon, wait_until
from tests.system.conftest import raise_core_limit
from tests.system.fusefile import SlowFile
from tests.system.test_analysis import SOURCES
from tests.system.test_explained import explained, info

NAMES = ("fault_in_library", "call_library", "main")
MEMFD = """
import os, sys
fd = os.memfd_create("program")
os.write(fd, open(sys.argv[1], "rb").read())
os.execve(fd, ["program"], {"LD_LIBRARY_PATH": sys.argv[2]})
"""
MOUNTED = 'mount -t tmpfs none "$2" && cp "$1"/* "$2" && exec env LD_LIBRARY_PATH="$2" "$2/program"'


def build(directory: Path, *flags: str) -> Path:
    """Build the program and its library into a directory."""
    directory.mkdir()
    library = directory / "libreplaceable.so"
    gcc = ["gcc", "-O1", *flags, "-o"]
    shared = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run([*gcc, library, *shared, SOURCES / "replaceable_library.c"], check=True)
    program = directory / "program"
    subprocess.run([*gcc, program, SOURCES / "replaceable.c", library], check=True)
    return program


def crash(command: list[str], where: Path, meanwhile: Callable[[], None]) -> int:
    """Start a program, do something once it runs, and let it crash; return its pid."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "LD_LIBRARY_PATH": str(where)},
        preexec_fn=raise_core_limit,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    meanwhile()
    child.communicate(b"\n", timeout=60)
    return child.pid


def upgrade(directory: Path) -> None:
    """Replace the program as a package manager does, and remove its library."""
    new = directory / "new"
    shutil.copy("/bin/true", new)
    new.rename(directory / "program")
    (directory / "libreplaceable.so").unlink()


@pytest.mark.usefixtures("core_pattern_lock")
def test_files_that_only_the_process_could_reach_give_its_stack_names(short_tmp: Path) -> None:
    replaced, bare, hidden = (short_tmp / name for name in ("replaced", "bare", "hidden"))
    build(replaced)
    build(bare, "-Wl,--build-id=none")
    shutil.copytree(replaced, hidden)
    short_tmp.chmod(0o755)
    mount = short_tmp / "mount"
    mount.mkdir()
    with Daemon(short_tmp / "r", config=PLAIN_CONFIG) as daemon:
        pids = {}
        memfd = [sys.executable, "-c", MEMFD, str(hidden / "program"), str(hidden)]
        pids["memfd"] = crash(memfd, hidden, lambda: (hidden / "libreplaceable.so").unlink())
        shutil.copy(replaced / "libreplaceable.so", hidden)
        mounted = ["unshare", "-m", "sh", "-c", MOUNTED, "sh", str(hidden), str(mount)]
        pids["mounted"] = crash(mounted, hidden, lambda: None)
        for directory in (replaced, bare):
            program = [str(directory / "program")]
            pids[directory.name] = crash(program, directory, partial(upgrade, directory))
        secret = str(build(short_tmp / "secret", "-DSECRET"))
        os.chmod(secret, 0o711)
        as_user = ["setpriv", "--reuid=61001", "--regid=61001", "--clear-groups", secret]
        secret_pid = crash(as_user, short_tmp / "secret", lambda: os.unlink(secret))
        explained(daemon, len(pids) + 1)
        frames = info(daemon, str(secret_pid))["frames"]
        assert [frame["function"] for frame in frames][:2] == ["fault_in_library", None]
        for name, pid in pids.items():
            found = info(daemon, str(pid))
            functions = [frame["function"] for frame in found["frames"]]
            assert functions[:3] == list(NAMES), (name, found["frames"], found["warnings"])
            assert not any("was not kept" in text for text in found["warnings"])
            replaced_texts = [text for text in found["warnings"] if "replaced after" in text]
            assert len(replaced_texts) == {"memfd": 1, "mounted": 0}.get(name, 2)
        files = daemon.paths.kept_files
        # the same two files in three crashes, and those without build-ids; nothing unreadable
        assert len(os.listdir(files)) == 4
        assert "program" in daemon.crashctl("info", "--all", str(pids["replaced"])).stdout
        bundle = short_tmp / "b.tar.zst"
        daemon.crashctl("bundle", str(pids["replaced"]), "-o", str(bundle))
        members = subprocess.run(["tar", "tf", bundle], check=True, capture_output=True, text=True)
        assert any(line.endswith("/libreplaceable.so") for line in members.stdout.splitlines())
        assert daemon.crashctl("verify", "--strict", check=False).stdout == ""
        daemon.crashctl("delete", str(pids["bare"]))
        wait_until(lambda: len(os.listdir(files)) == 2, 30, "files that no crash needs are removed")
        again = daemon.crashctl("analyze", str(pids["replaced"])).stdout
        assert "fault_in_library()" in again


def test_file_that_always_comes_just_in_time_is_not_kept_for_hours(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "root")
    entries.prepare(paths)
    options = Options(
        engine="auto",
        max_core=None,
        honour_rlimit=False,
        keep_free_bytes=0,
        level=1,
        threads=0,
        deadline_ns=60 * 10**9,
        page_timeout_ns=5 * 10**8,
        environ="drop",
        patterns=(),
        keep_files_bytes=1 << 30,
    )
    slow = SlowFile(tmp_path / "slow", 60 << 20, build_image(), 0.04)  # 0.3 s for each MiB
    with entries.create(paths, build_crash(1)) as entry, slow:
        keeper = _Keeper(build_crash(1), entry, options, Reader(), Pace())
        fd = os.open(slow.path, os.O_PATH)
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                keeper.keep(Executable("", b"/gone/program", is_nameless=True), fd)
        finally:
            os.close(fd)
        assert time.monotonic() - began < TIMEOUTS_MAX * 0.5 + 2
        assert entry.file_names() and not any(map(is_kept_name, entry.file_names()))
