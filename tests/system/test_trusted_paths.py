"""A root below which others than root can replace the handler: nothing is registered there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashd.edge.host.hooks import list_hooks
from crashd.errors import ConfigError
from crashd.store.paths import Paths
from crashd.store.trusted import find_untrusted, read_trusted
from tests.running import DEFAULT_CONFIG, Daemon, crashctl, wait_until
from tests.system.fusefile import UserDirectory

NOBODY = 65534
PATTERN = Path("/proc/sys/kernel/core_pattern")


@pytest.fixture
def place(core_pattern_owner: None) -> Iterator[Path]:
    """A directory of root's in /tmp, which is sticky and open to all."""
    path = Path(f"/tmp/cdt{os.getpid()}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def users_directory(place: Path) -> Path:
    (place / "home/r").mkdir(parents=True)
    os.chown(place / "home", NOBODY, NOBODY)
    return place / "home/r"


def open_to_a_group(place: Path) -> Path:
    (place / "shared/r").mkdir(parents=True)
    (place / "shared").chmod(0o775)
    return place / "shared/r"


def open_by_an_acl(place: Path) -> Path:
    (place / "listed/r").mkdir(parents=True)
    acl = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, rights, who in (
            (1, 7, 2**32 - 1),
            (2, 7, NOBODY),
            (4, 5, 2**32 - 1),
            (16, 7, 2**32 - 1),
            (32, 5, 2**32 - 1),
        )
    )
    os.setxattr(place / "listed", "system.posix_acl_access", acl)
    return place / "listed/r"


def link_in_a_users_directory(place: Path) -> Path:
    (place / "sound").mkdir()
    users_directory(place)
    (place / "home/link").symlink_to(place / "sound")
    return place / "home/link"


def link_through_a_users_directory(place: Path) -> Path:
    """A link of root's that leads to another one, which its user can replace."""
    link = link_in_a_users_directory(place)
    (place / "r").symlink_to(os.path.relpath(link, place))
    return place / "r"


def users_handler_directory(place: Path) -> Path:
    """README's trial in a clone: `usr` is the user's, all else root's."""
    (place / "r/usr/libexec").mkdir(parents=True)
    os.chown(place / "r/usr", NOBODY, NOBODY)
    return place / "r"


UNSAFE: dict[Callable[[Path], Path], str] = {
    users_directory: "home belongs to uid 65534",
    open_to_a_group: "shared can be written by others",
    open_by_an_acl: "listed can be written by others",
    link_in_a_users_directory: "home belongs to uid 65534",
    link_through_a_users_directory: "home belongs to uid 65534",
    users_handler_directory: "usr belongs to uid 65534",
}


@pytest.mark.parametrize("make", UNSAFE, ids=lambda make: make.__name__)
def test_sec_75_a_handler_that_others_can_replace_is_not_registered(
    place: Path, make: Callable[[Path], Path]
) -> None:
    root = make(place)
    before = PATTERN.read_text()
    for argv in (
        ["-m", "crashd", "run", "--root", str(root)],
        ["-m", "crashd.cli", "--root", str(root), "install"],
    ):
        done = subprocess.run(
            [sys.executable, *argv], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2, done.stderr
        first, hint = done.stderr.splitlines()
        assert UNSAFE[make] in first and "chown root" in hint
        assert PATTERN.read_text() == before
        assert not os.path.lexists(Paths(root).handler), "nothing is written there either"


@pytest.mark.parametrize("name", ["var/lib", "run", "etc"])
def test_sec_75_store_sockets_and_configuration_are_not_kept_where_others_rule(
    place: Path, name: str
) -> None:
    """Also without registering: what root reads and runs is there."""
    (place / name).mkdir(parents=True)
    os.chown(place / name, NOBODY, NOBODY)
    argv = [sys.executable, "-m", "crashd", "run", "--no-register", "--root", str(place)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert f"{place / name} belongs to uid {NOBODY}" in done.stderr


def test_sec_75_roots_own_directory_in_a_sticky_one_is_safe(place: Path) -> None:
    assert find_untrusted(place / "r/usr/libexec") is None
    (place / "link").symlink_to(place / "r")
    with Daemon(place / "r", config=DEFAULT_CONFIG) as daemon:
        assert str(daemon.paths.handler) in PATTERN.read_text()
    assert find_untrusted(place / "link/usr/libexec/crashd-core") is None
    missing = Path(f"/tmp/nobody-made-{os.getpid()}/usr")
    assert "others than root can make it" in (find_untrusted(missing) or "")
    (place / "loop").symlink_to("loop")
    assert find_untrusted(place / "loop") is not None


def test_sec_75_a_users_own_file_system_is_not_believed(place: Path) -> None:
    with UserDirectory(place / "theirs", NOBODY) as theirs:
        assert theirs.stat().st_uid == 0, "it says that it is root's"
        assert f"is a file system of uid {NOBODY}" in (find_untrusted(theirs / "usr") or "")


def test_sec_75_a_handler_on_a_noexec_mount_is_refused(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,mode=755", "tmpfs", place], check=True)
    try:
        before = PATTERN.read_text()
        done = crashctl(place, "install", check=False)
        assert done.returncode == 2
        assert "mounted noexec" in done.stderr and f"remount,exec {place}" in done.stderr
        assert PATTERN.read_text() == before
        with Daemon(place, config=DEFAULT_CONFIG) as daemon:
            assert "mounted noexec" in daemon.log.read_text()
            assert PATTERN.read_text() == before
            assert "mounted noexec" in doctors_word(place, daemon)
    finally:
        subprocess.run(["umount", place], check=True)


def doctors_word(place: Path, daemon: Daemon) -> str:
    """Return what doctor says of a handler that was installed before the mount changed."""
    subprocess.run(["mount", "-o", "remount,exec", place], check=True)
    assert crashctl(place, "install").returncode == 0
    subprocess.run(["mount", "-o", "remount,noexec", place], check=True)
    said = daemon.crashctl("doctor", check=False).stdout
    assert crashctl(place, "uninstall").returncode == 0
    return said


def test_sec_75_files_that_root_reads_or_runs_through_a_users_directory_are_refused(
    place: Path,
) -> None:
    """Root's own files, yet a user could put another one in their place between look and use."""
    hooks = place / "hooks.d"
    hooks.mkdir()
    home = users_directory(place).parent
    for path in (home / "hook", hooks / "sound"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (hooks / "link").symlink_to(home / "hook")
    found, wrong = list_hooks(hooks)
    assert found == [hooks / "sound"]
    assert [f"{home} belongs to uid {NOBODY}" in text for text in wrong] == [True]
    (home / "r/settings.toml").touch()
    with pytest.raises(ConfigError, match=f"{home} belongs to uid {NOBODY}"):
        read_trusted(home / "r/settings.toml", 100)


# -- the trial -------------------------------------------------------------------------------------

REPOSITORY = Path(__file__).parents[2]
TRIAL_FILES = ("crashd", "packaging", "pyproject.toml", "README.md", "LICENSE")
READY_ENVIRONMENT = f"""
provide() {{ :; }}
build_environment() {{ environment={Path(sys.executable).parents[1]}; }}
"""
"""For packaging/lib.sh: takes the tests' environment, as building one takes minutes."""


@pytest.fixture
def clone(place: Path) -> Path:
    """A clone that belongs to a user, and that everybody can write to."""
    path = place / "clone"
    path.mkdir()
    for name in TRIAL_FILES:
        subprocess.run(["cp", "-R", REPOSITORY / name, path / name], check=True)
    with (path / "packaging/lib.sh").open("a") as library:
        library.write(READY_ENVIRONMENT)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", path], check=True)
    subprocess.run(["chmod", "-R", "a+rwX", path], check=True)
    return path


def start_trial(clone: Path, trial: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start the trial as README says, in the clone."""
    with log.open("wb") as output:
        return subprocess.Popen(
            ["sh", "packaging/run.sh"],
            cwd=clone,
            env={**os.environ, "CRASHD_TRIAL": str(trial)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def test_sec_75_trial_in_a_world_writable_clone_runs_nothing_that_its_user_can_change(
    place: Path, clone: Path
) -> None:
    before, evil, log = PATTERN.read_text(), place / "evil", place / "log"
    paths = Paths(place / "trial/root")
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text(DEFAULT_CONFIG)
    running = start_trial(clone, place / "trial", log)
    try:
        wait_until(
            lambda: "crashd is ready and" in log.read_text() or running.poll() is not None, 60
        )
        assert str(paths.handler) in PATTERN.read_text(), log.read_text()
        assert find_untrusted(paths.handler) is None
        for path in (place / "trial", *(place / "trial/source").rglob("*")):
            found = path.lstat()
            assert found.st_uid == 0 and (path.is_symlink() or not found.st_mode & 0o022), path
        for fd in Path(f"/proc/{running.pid}/fd").iterdir():
            assert not os.readlink(fd).startswith(str(clone)), "the script that runs is the copy"
        replace_all = (
            f"find {clone} -type f | while read -r f; do echo 'touch {evil}' >\"$f\"; done"
        )
        subprocess.run(["sh", "-c", replace_all], user=NOBODY, group=NOBODY, check=True)
        assert "touch" in (clone / "packaging/run.sh").read_text()
    finally:
        running.terminate()
        status = running.wait(90)
    assert status == 0, log.read_text()
    assert PATTERN.read_text() == before
    assert not evil.exists()


def test_sec_75_trial_where_others_rule_is_refused(place: Path, clone: Path) -> None:
    log = place / "log"
    assert start_trial(clone, clone / "trial", log).wait(60) == 2
    assert log.read_text() == (
        f"run.sh: {clone} can be changed by others than root: "
        "set CRASHD_TRIAL to a directory that cannot\n"
    )
    assert not (clone / "trial").exists()
