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
STEPS = """
#include <stddef.h>
volatile int *nothing = NULL;
__attribute__((noinline)) void {0}(void) {{ *nothing = 1; }}
__attribute__((noinline)) void {1}(void) {{ {0}(); *nothing = 2; }}
int main(void) {{ {1}(); return 0; }}
"""


@pytest.fixture
def daemon(core_pattern_lock: None, short_tmp: Path) -> Iterator[Daemon]:
    short_tmp.chmod(0o755)
    (short_tmp / "r").mkdir()
    ids = short_tmp / "ids"
    ids.mkdir()
    # what is kept with a crash is the user's own: test_keptfiles.py
    config = f'{PLAIN_CONFIG}[capture]\nkeep_files = 0\n[analysis]\nbuild_id_dirs = ["{ids}"]\n'
    with Daemon(short_tmp / "r", config=config) as running:
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


def test_sec_72_debugger_is_given_what_the_crashed_user_could_read(
    daemon: Daemon, hidden: tuple[Path, str]
) -> None:
    path, script = hidden
    found = crash(daemon, "unshare", "-Urm", "sh", "-c", script)
    done = daemon.crashctl("debug", "--as-root", found["id"], "-A", "-batch -ex bt")
    assert "null_read (" not in done.stdout
    assert f"no symbols for {path}" in done.stderr
    assert "not readable for the crashed user" in done.stderr


def build(path: Path, inner: str, outer: str) -> None:
    source = path.with_suffix(".c")
    source.write_text(STEPS.format(inner, outer))
    path.unlink(missing_ok=True)
    options = ["-g", "-O0", "-Wl,--build-id"]
    subprocess.run(["gcc", *options, "-o", path, source], check=True)


def test_an_upgrade_changes_neither_stack_nor_signature(daemon: Daemon, short_tmp: Path) -> None:
    program, ids = short_tmp / "steps", short_tmp / "ids"
    build(program, "foo", "bar")
    before = crash(daemon, program)
    assert functions(before)[:3] == ["foo", "bar", "main"]
    batch = ("debug", before["id"], "-A", "-batch -ex bt")
    done = daemon.crashctl(*batch)
    assert "foo (" in done.stdout
    assert "warning: no symbols" not in done.stderr
    old = program.read_bytes()

    build(program, "quux", "fred")
    analyzed = daemon.crashctl("analyze", before["id"])
    assert analyzed.stderr.count("\n") == 1
    assert "found less than an earlier one, which is kept" in analyzed.stderr
    after = info(daemon, before["id"])
    assert (after["frames"], after["signature"]) == (before["frames"], before["signature"])
    assert after["analysis"]["state"] == "done"
    done = daemon.crashctl(*batch)
    for name in ("quux", "fred", "foo", "bar"):
        assert f"{name} (" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if f"no symbols for {program} " in line]
    assert f"build-id {before['build_id']}" in line
    assert "has been replaced, with build-id " in line

    place = ids / ".build-id" / before["build_id"][:2]
    place.mkdir(parents=True)
    (place / before["build_id"][2:]).write_bytes(old)
    done = daemon.crashctl(*batch)
    assert "foo (" in done.stdout
    assert "warning: no symbols" not in done.stderr
    analyzed = daemon.crashctl("analyze", before["id"])
    assert "found less" not in analyzed.stderr
    assert info(daemon, before["id"])["signature"] == before["signature"]


def test_a_containers_program_is_not_the_hosts(daemon: Daemon, short_tmp: Path) -> None:
    """One path, in a root of its own and on the host: gdb is never given the host's."""
    inside, program = short_tmp / "c", short_tmp / "steps"
    build(program, "quux", "fred")
    inner = inside / program.relative_to("/")
    inner.parent.mkdir(parents=True)
    source = inner.with_suffix(".c")
    source.write_text(STEPS.format("foo", "bar"))
    subprocess.run(["gcc", "-g", "-O0", "-static", "-o", inner, source], check=True)
    for path in (inner, *inner.parents):
        if path.is_relative_to(inside):
            path.chmod(0o755)
    known = len(daemon.crashes())
    subprocess.run(["chroot", inside, program], preexec_fn=raise_core_limit, check=False)
    (row,) = daemon.wait_for(known + 1)
    done = daemon.crashctl("debug", row["id"], "-A", "-batch -ex bt")
    assert "quux" not in done.stdout
    assert "foo (" in done.stdout
