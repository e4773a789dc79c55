"""Whose a file is, by the real dpkg-query and rpm, with databases of these tests."""

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.daemon.after import packages
from crashd.daemon.after.packages import Packages
from crashd.domain.cause.analysis import PackageNote
from crashd.domain.crash.model import Crash
from crashd.domain.crash.package import Package
from crashd.domain.elf.elfcore import IMAGE_MAX, parse_build_id
from crashd.edge.host import packages as edge
from crashd.edge.host.packages import find_package
from crashd.errors import UnavailableError
from tests.builders.crashes import build_crash

needs_dpkg = pytest.mark.skipif(not os.path.exists(edge.DPKG_QUERY), reason="needs dpkg-query")
needs_rpm = pytest.mark.skipif(
    not os.path.exists(edge.RPM) or shutil.which("rpmbuild") is None, reason="needs rpmbuild"
)
NO_DPKG = ["--admindir=/nonexistent"]
FILES = {
    "dash": ["/bin", "/bin/sh", "/bin/dash"],
    "bash": ["/bin", "/bin/sh", "/bin/bash"],
    "coreutils": ["/usr/bin/[", "/bin/tool"],
    "zz": ["/usr/bin/a"],
}
DIVERSIONS = "/bin/sh\n/bin/sh.distrib\ndash\n/bin/tool\n/bin/tool.moved\n:\n"
SPEC = """
Name: tiny
Version: 1.2
Release: 3.fc41
Epoch: 4
Summary: x
License: x
BuildArch: noarch
%description
x
%install
mkdir -p %{buildroot}/usr/bin; echo x > %{buildroot}/usr/bin/env
%files
/usr/bin/env
"""


@pytest.fixture
def dpkg(tmp_path: Path) -> list[str]:
    """A database of dpkg, as the option that names it."""
    (tmp_path / "info").mkdir()
    (tmp_path / "info/format").write_text("1\n")
    (tmp_path / "diversions").write_text(DIVERSIONS)
    stanzas = []
    for name, files in FILES.items():
        (tmp_path / f"info/{name}.list").write_text("/.\n" + "\n".join(files) + "\n")
        stanzas.append(
            f"Package: {name}\nStatus: install ok installed\nMaintainer: x\nArchitecture: all\n"
            f"Version: 1:{name}-2~b+x\nDescription: x\n"
        )
    (tmp_path / "status").write_text("\n".join(stanzas).replace("1:", "1:5."))
    return [f"--admindir={tmp_path}"]


@needs_dpkg
@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/usr/bin/bash", "bash"),
        ("/bin/bash", "bash"),
        ("/usr/bin/sh", "dash"),
        ("/usr/bin/sh.distrib", "bash"),
        ("/usr/bin/tool", None),
        ("/usr/bin/tool.moved", "coreutils"),
        ("/usr/bin/[", "coreutils"),
        ("/usr/bin/*", None),
        ("/usr/bin/?", None),
        ("/usr/bin/nothing", None),
        ("--version", None),
    ],
)
def test_find_package_asks_dpkg(dpkg: list[str], path: str, owner: str | None) -> None:
    found = find_package(path, dpkg=dpkg)
    assert found == (None if owner is None else Package(owner, f"1:5.{owner}-2~b+x", "dpkg"))


@needs_rpm
def test_find_package_asks_rpm(tmp_path: Path) -> None:
    spec, database = tmp_path / "tiny.spec", tmp_path / "db"
    spec.write_text(SPEC)
    build = ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {tmp_path}", str(spec)]
    subprocess.run(build, check=True, capture_output=True)
    (package,) = tmp_path.rglob("*.rpm")
    options = ["--justdb", "--nodeps", "--force"]
    install = ["rpm", "--dbpath", str(database), "-i", *options, str(package)]
    subprocess.run(install, check=True, capture_output=True)
    rpm = ["--dbpath", str(database)]
    for path in ("/usr/bin/env", "/bin/env") if os.path.islink("/bin") else ("/usr/bin/env",):
        found = find_package(path, dpkg=NO_DPKG, rpm=rpm)
        assert found == Package("tiny", "4:1.2-3.fc41", "rpm")
    assert find_package("/usr/bin/id", dpkg=NO_DPKG, rpm=rpm) is None
    shutil.rmtree(database)
    database.write_text("not a directory, as unreadable as a database on a read-only file system")
    with pytest.raises(UnavailableError, match="rpm: "):
        find_package("/usr/bin/env", dpkg=NO_DPKG, rpm=rpm)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sleep 60 & sleep 60", "does not answer in time"),
        ("sleep 60 & exit 0", "does not answer in time"),
        ("exec >&-; sleep 60", "does not answer"),
        ("exec yes", "prints more than a package"),
        ("exit 2", "failed with status 2"),
        ("kill -9 $$", "failed with status -9"),
    ],
)
def test_find_package_manager_that_hangs_floods_or_fails_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    program = tmp_path / "dpkg-query"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(edge, "DPKG_QUERY", str(program))
    monkeypatch.setattr(edge, "SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=why):
        find_package("/usr/bin/env", dpkg=["--x"])
    assert time.monotonic() - started < 5
    group = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):  # none of its children is left
        while time.monotonic() - started < 10:
            os.killpg(group, 0)
            time.sleep(0.01)  # until init has waited for them


class Counting:
    """Stands in for the package manager, which the tests above ask."""

    def __init__(self) -> None:
        self.asked: list[str] = []

        self.trouble: UnavailableError | None = None

    def __call__(self, path: str) -> Package:
        self.asked.append(path)
        if self.trouble is not None:
            raise self.trouble
        return Package("owner", "1", "dpkg")


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """What is asked instead of a package manager."""
    counting = Counting()
    monkeypatch.setattr(packages, "find_package", counting)
    return counting


def crash_of(path: str, **more: object) -> Crash:
    """Build a crash of a program of the host."""
    with open(path, "rb") as file:
        build_id = parse_build_id(file.read(IMAGE_MAX))
    status = os.stat(path)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    maps = f"55d0-55d1 r-xp 00001000 {device} {status.st_ino}      {path}\n".encode()
    crash = build_crash(
        exe=path.encode(), root=b"/", build_id=build_id, maps=maps, time_ns=time.time_ns()
    )
    return replace(crash, **more)  # type: ignore[arg-type]


PROGRAM = os.path.realpath("/usr/bin/env")


def test_packages_are_asked_once_for_each_executable(manager: Counting) -> None:
    known = Packages()
    for _ in range(3):
        found = known.find(crash_of(PROGRAM), PackageNote("claimed", "9"))
        assert found == Package("owner", "1", "dpkg")
    assert manager.asked == [PROGRAM]
    known.find(crash_of(os.path.realpath("/usr/bin/id")), None)
    assert len(manager.asked) == 2


def test_packages_are_asked_again_once_packages_have_changed(
    manager: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(edge, "DPKG_FILES", (str(status),))
    known = Packages()
    known.find(crash_of(PROGRAM), None)
    status.write_text("Package: new\n")
    known.find(crash_of(PROGRAM), None)
    assert len(manager.asked) == 2


def test_packages_that_nobody_named_are_asked_for_again_a_minute_later(
    manager: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, note = Packages(), PackageNote("claimed", "9")
    manager.trouble = UnavailableError("it does not answer")
    for path in (PROGRAM, os.path.realpath("/usr/bin/id")):
        assert known.find(crash_of(path), note) == Package("claimed", "9", "note")
    assert manager.asked == [PROGRAM], "a storm of crashes does not wait for each of them"
    manager.trouble = None
    monkeypatch.setattr(packages, "SILENT_SECONDS", 0.0)
    known._silent_until_s = 0.0
    assert known.find(crash_of(PROGRAM), note) == Package("owner", "1", "dpkg")


@pytest.mark.parametrize(
    "more",
    [
        {"build_id": "ab" * 20},
        {"root": b""},
        {"root": b"/srv/chroot"},
        {"exe": b"/usr/bin/env (deleted)"},
        {"exe": b"/nonexistent/env"},
        {"exe": b"/etc"},
        {"exe": b"env"},
        {"exe": b""},
        {"mount_ns": 4026532000, "maps": b""},
        {"mount_ns": 4026532000, "maps": b"1-2 r-xp 0 00:2a 77 " + PROGRAM.encode() + b"\n"},
        {"build_id": None, "maps": b""},
        {"build_id": None, "time_ns": 1},
    ],
)
def test_packages_of_a_file_that_is_not_the_hosts_are_never_asked(
    manager: Counting, more: dict[str, object]
) -> None:
    crash = crash_of(PROGRAM, **more)
    assert Packages().find(crash, None) is None
    note = Packages().find(crash, PackageNote("claimed", "9-1"))
    assert note == Package("claimed", "9-1", "note")
    assert manager.asked == []


def test_packages_of_a_hosts_file_in_a_private_mount_namespace_or_without_build_id(
    manager: Counting,
) -> None:
    found = Package("owner", "1", "dpkg")
    assert Packages().find(crash_of(PROGRAM, mount_ns=4026532000), None) == found
    assert Packages().find(crash_of(PROGRAM, build_id=None), None) == found


def test_packages_of_a_file_that_others_can_replace_are_never_asked(manager: Counting) -> None:
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:  # not below /tmp
        directory = Path(name)
        program = directory / "env"
        shutil.copy(PROGRAM, program)
        # sticky as /tmp: below such a directory users mount what may never answer
        for mode in (0o777, 0o1777, 0o775):
            directory.chmod(mode)
            assert Packages().find(crash_of(str(program)), None) is None
        assert manager.asked == []
        directory.chmod(0o755)
        assert Packages().find(crash_of(str(program)), None) is not None


@pytest.mark.parametrize("note", [PackageNote("a b", "1"), PackageNote("a", "\x1b[31m")])
def test_packages_believe_no_worker(note: PackageNote) -> None:
    assert Packages().find(crash_of(PROGRAM, root=b""), note) is None
