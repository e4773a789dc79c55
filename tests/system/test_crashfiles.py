"""Files that a crash names: opened as its own user could, and used where they are what crashed."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import PLAIN_CONFIG, Daemon
from tests.system.conftest import raise_core_limit
from tests.system.test_analysis import compile_program
from tests.system.test_bundle import members

U, GROUP = 61001, 61002


@pytest.fixture
def daemon(core_pattern_lock: None, short_tmp: Path) -> Iterator[Daemon]:
    short_tmp.chmod(0o755)
    (short_tmp / "r").mkdir()
    with Daemon(short_tmp / "r", config=PLAIN_CONFIG) as running:
        yield running


def crash(daemon: Daemon, *command: str | Path, groups: str = "") -> dict[str, Any]:
    """Let a process of U's crash; return its record once it was analysed."""
    known = {row["id"] for row in daemon.crashes()}
    user = ["setpriv", f"--reuid={U}", f"--regid={U}"]
    user.append(f"--groups={groups}" if groups else "--clear-groups")
    subprocess.run([*user, *command], preexec_fn=raise_core_limit, check=False, cwd="/")
    daemon.wait_for(len(known) + 1)
    (new,) = {row["id"] for row in daemon.crashes()} - known
    daemon.crashctl("analyze", new)
    return info(daemon, new)


def info(daemon: Daemon, crash_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.crashctl("info", "--json", crash_id).stdout)
    return found


def functions(found: dict[str, Any]) -> list[str | None]:
    return [frame["function"] for frame in found["frames"]]


def packed(daemon: Daemon, found: dict[str, Any], directory: Path) -> set[str]:
    """Bundle a crash as root; return the paths of the files that are in it."""
    target = directory / f"{found['id']}.tar.zst"
    daemon.crashctl("bundle", found["id"], "-o", str(target))
    return {module["path"] for module in json.loads(members(target)["modules.json"])}


@pytest.fixture
def hidden(short_tmp: Path, tmp_path: Path) -> tuple[Path, str]:
    """A program of root's below a directory that only root may search, and a script that runs
    another file of its name: the user's own, below the user's own mount.
    """
    program = compile_program("causes", short_tmp)
    secret = short_tmp / "secret"
    secret.mkdir(mode=0o700)
    (secret / "p").write_bytes(program.read_bytes())
    (secret / "p").chmod(0o755)
    place, own = shlex.quote(str(secret)), shlex.quote(str(program))
    return secret / "p", f"mount -t tmpfs own {place} && cp {own} {place}/p && {place}/p null_read"


def test_sec_71_what_a_users_mount_hides_is_not_opened(
    daemon: Daemon, hidden: tuple[Path, str]
) -> None:
    path, script = hidden
    found = crash(daemon, "unshare", "-Urm", "sh", "-c", script)
    assert found["exe"] == str(path)
    assert "null_read" not in functions(found)
    assert found["uid"] == U


def test_sec_71_a_program_of_the_users_group_is_analysed(daemon: Daemon, short_tmp: Path) -> None:
    directory = short_tmp / "group"
    directory.mkdir(mode=0o750)
    program = compile_program("causes", directory)
    program.chmod(0o750)
    for path in (directory, program):
        os.chown(path, 0, GROUP)
    found = crash(daemon, program, "null_read", groups=str(GROUP))
    assert functions(found)[0] == "null_read"


def test_sec_72_bundle_packs_what_the_crashed_user_could_read(
    daemon: Daemon, hidden: tuple[Path, str], tmp_path: Path, short_tmp: Path
) -> None:
    path, script = hidden
    found = crash(daemon, "unshare", "-Urm", "sh", "-c", script)
    assert str(path) not in packed(daemon, found, tmp_path)
    own = compile_program("causes", short_tmp)
    assert str(own) in packed(daemon, crash(daemon, own, "null_read"), tmp_path)
