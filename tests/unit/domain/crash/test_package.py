import pytest

from crashd.domain.crash.package import (
    Owners,
    Package,
    dpkg_owner,
    escape_pattern,
    mapped_inodes,
    names_in_dpkg,
    parse_dpkg_search,
    parse_package,
    path_text,
    with_package,
)
from tests.builders.crashes import build_crash

DIVERTED = """\
diversion by dash from: /bin/sh
diversion by dash to: /bin/sh.distrib
dash, bash: /bin/sh
"""
LOCAL = """\
local diversion from: /bin/tool
local diversion to: /bin/tool.moved
coreutils: /bin/tool
"""


@pytest.mark.parametrize(
    ("output", "paths", "owner"),
    [
        ("bash: /bin/bash\n", ["/usr/bin/bash", "/bin/bash"], "bash"),
        ("libc6:amd64: /lib/ld.so\n", ["/lib/ld.so"], "libc6:amd64"),
        ("libx:amd64, libx:i386: /lib/x\n", ["/lib/x"], "libx:amd64"),
        ("one, two: /bin/x\n", ["/bin/x"], None),
        ("bash: /bin/bash2\n", ["/bin/bash"], None),
        ("", ["/bin/bash"], None),
        ("Bash: /bin/bash\n--x: /bin/bash\n", ["/bin/bash"], None),
        (DIVERTED, ["/bin/sh"], "dash"),
        (LOCAL, ["/bin/tool"], None),
    ],
)
def test_dpkg_owner_of_what_dpkg_prints(output: str, paths: list[str], owner: str | None) -> None:
    assert dpkg_owner(parse_dpkg_search(output, paths)) == owner


def test_parse_dpkg_search_of_a_file_that_was_moved_names_its_first_path() -> None:
    found = parse_dpkg_search(DIVERTED.rpartition("dash,")[0], ["/bin/sh.distrib"])
    assert found == Owners(moved_from="/bin/sh")
    assert dpkg_owner(Owners(("dash", "bash")), "dash") == "bash"


def test_names_in_dpkg_also_that_from_before_usr_was_merged() -> None:
    assert names_in_dpkg("/usr/bin/sh") == ["/usr/bin/sh", "/bin/sh"]
    assert names_in_dpkg("/usr/lib64/ld.so") == ["/usr/lib64/ld.so", "/lib64/ld.so"]
    for path in ("/usr/share/x", "/opt/usr/bin/x", "/usr/local/bin/x", "/usr/bin/"):
        assert names_in_dpkg(path) == [path]


@pytest.mark.parametrize(
    ("path", "pattern"),
    [("/usr/bin/[", r"/usr/bin/\["), ("/a*b?c", r"/a\*b\?c"), ("/a\\b", r"/a\\b"), ("/a", "/a")],
)
def test_escape_pattern_makes_a_path_mean_itself(path: str, pattern: str) -> None:
    assert escape_pattern(path) == pattern


@pytest.mark.parametrize(
    "exe",
    [b"", b"bin/sh", b"--root=/", b"/bin/\n", b"/bin/%{lua:x}", b"/\xc3\xa4", b"/" + b"x" * 2000],
)
def test_path_text_refuses_what_no_package_manager_should_get(exe: bytes) -> None:
    assert path_text(exe) is None
    assert path_text(b"/usr/bin/[ x (deleted)") == "/usr/bin/[ x (deleted)"


def test_parse_package_refuses_everything_else() -> None:
    assert parse_package("bash\t1:5.2-2+b8\n", "dpkg") == Package("bash", "1:5.2-2+b8", "dpkg")
    assert parse_package("libc6:amd64\t2.36\n", "dpkg") == Package("libc6", "2.36", "dpkg")
    for line in ("", "bash\n", "bash\t\n", "file /x is not owned by any package\n", "a\tb\tc\n"):
        assert parse_package(line, "rpm") is None


def test_mapped_inodes_are_those_of_all_files_with_the_name() -> None:
    maps = (
        b"55d0-55d1 r--p 00000000 fd:01 1234                       /usr/bin/a b\n"
        b"55d1-55d2 r-xp 00001000 fd:01 1234                       /usr/bin/a b\n"
        b"7f00-7f01 r--p 00000000 00:2a 77                         /usr/bin/a\n"
        b"7f01-7f02 rw-p 00000000 00:00 0 \n"
        b"7f02-7f03 r--p 00000000 zz:01 x                          /usr/bin/c\n"
    )
    assert mapped_inodes(maps, b"/usr/bin/a b") == {(0xFD, 1, 1234)}
    other = maps + b"7f05-7f06 r--p 00000000 fd:02 9 /usr/bin/a b\n"
    assert mapped_inodes(other, b"/usr/bin/a b") == {(0xFD, 1, 1234), (0xFD, 2, 9)}
    assert mapped_inodes(maps, b"/usr/bin/c") == mapped_inodes(b"", b"/x") == set()


def test_with_package_keeps_what_is_known() -> None:
    crash = with_package(build_crash(), Package("bash", "5", "dpkg"))
    assert (crash.package_name, crash.package_version, crash.package_source) == (
        "bash",
        "5",
        "dpkg",
    )
    assert with_package(crash, None) == crash
    assert with_package(crash, Package("claimed", "9", "note")) == crash
    newer = with_package(crash, Package("bash", "6", "rpm"))
    assert (newer.package_version, newer.package_source) == ("6", "rpm")
    claimed = with_package(build_crash(), Package("claimed", "9", "note"))
    assert with_package(claimed, Package("claimed", "10", "note")).package_version == "10"
    assert with_package(claimed, Package("bash", "5", "dpkg")).package_source == "dpkg"
