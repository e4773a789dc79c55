"""Files that a core names: opened without being led anywhere."""

import errno
import os
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.domain.crash.access import Credentials
from crashd.domain.crash.filesearch import FileSearch, Root
from crashd.domain.crash.searchplan import plan_search
from crashd.domain.elf.elfcore import parse_build_id
from crashd.domain.elf.modules import Module
from crashd.edge.sandbox.modulefiles import (
    ModuleFile,
    copy_with_unwind,
    foreign_unwind_size,
    open_modules,
    read_debug_strings,
    read_debuglink,
    read_soname,
)
from tests.builders.crashes import build_crash
from tests.builders.elfcore import build_image

IMAGE = build_image()
BUILD_ID = bytes(range(20)).hex()
ROOT = Credentials(0, 0, overrides=True)


def module(name: bytes, **more: object) -> Module:
    values: dict[str, object] = {"build_id": BUILD_ID, "image": IMAGE, "deleted": False, **more}
    return Module(name=name, start=0x1000, end=0x2000, **values)  # type: ignore[arg-type]


def entered(roots: list[bytes], who: Credentials = ROOT) -> FileSearch:
    """Search below directories that a container's process begins at."""
    return FileSearch(who, tuple(Root(path, entered=True) for path in roots))


def open_one(
    wanted: Module, roots: list[bytes], who: Credentials = ROOT, files_max: int = 9
) -> ModuleFile:
    found = open_modules([wanted], entered(roots, who), files_max)[0]
    for fd in (found.fd, found.debug_fd):
        if fd is not None:
            os.close(fd)
    return found


def test_open_modules_opens_the_file_that_was_mapped(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.so").write_bytes(IMAGE)
    found = open_one(module(b"/lib/a.so"), [os.fsencode(tmp_path)])
    assert found.fd is not None
    assert found.problem is None


def test_open_modules_takes_the_first_root_that_has_it(tmp_path: Path) -> None:
    for name, image in (("upper", build_image(b"other" * 4)), ("lower", IMAGE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.so").write_bytes(image)
    roots = [os.fsencode(tmp_path / name) for name in ("missing", "upper", "lower")]
    assert open_one(module(b"/a.so"), roots).fd is not None
    assert open_one(module(b"/a.so"), roots[:2]).problem == (
        f"file has been replaced, with build-id {(b'other' * 4).hex()}"
    )
    assert open_one(module(b"/a.so"), roots[:1]).problem == "file is gone"


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, make_socket, lambda path: path.symlink_to("/etc/passwd")],
    ids=["fifo", "directory", "socket", "link"],
)
def test_open_modules_nothing_but_a_file_is_opened(
    short_tmp: Path, make: Callable[[Path], None]
) -> None:
    make(short_tmp / "a.so")
    found = open_one(module(b"/a.so"), [os.fsencode(short_tmp)])
    assert found.fd is None
    assert found.problem == "not a regular file"


def test_open_modules_no_link_on_the_way_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.so").write_bytes(IMAGE)
    (tmp_path / "link").symlink_to("real")
    found = open_one(module(b"/link/a.so"), [os.fsencode(tmp_path)])
    assert found.fd is None
    assert found.problem is not None
    assert "cannot be opened" in found.problem


@pytest.mark.parametrize("name", [b"/../a.so", b"", b"/", b"/x/../../a.so", b"/a\0.so"])
def test_open_modules_odd_names_are_refused(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "a.so").write_bytes(IMAGE)
    (tmp_path / "root").mkdir()
    assert open_one(module(name), [os.fsencode(tmp_path / "root")]).fd is None


def test_open_modules_what_the_user_may_not_read_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "a.so"
    path.write_bytes(IMAGE)
    path.chmod(0o640)
    owner = path.stat().st_uid
    roots = [os.fsencode(tmp_path)]
    assert open_one(module(b"/a.so"), roots, Credentials(owner)).fd is not None
    assert open_one(module(b"/a.so"), roots, Credentials(owner + 7)).problem == (
        "not readable for the crashed user"
    )
    path.chmod(0o644)
    assert open_one(module(b"/a.so"), roots, Credentials(owner + 7)).fd is not None


def test_sec_71_a_file_that_nothing_vouches_for_is_not_read(tmp_path: Path) -> None:
    page = IMAGE.ljust(4096, b"\1")
    (tmp_path / "a.so").write_bytes(page + b"secret")
    roots = [os.fsencode(tmp_path)]
    why = "the core does not identify the file"
    for image in (b"", page[:64], page[:4095]):
        unknown = module(b"/a.so", build_id=None, image=image)
        assert open_one(unknown, roots).problem == why
    assert open_one(module(b"/a.so", build_id=None, image=page), roots).fd is not None
    other = page[:-1] + b"\2"
    assert open_one(module(b"/a.so", build_id=None, image=other), roots).fd is None


def test_open_modules_stops_at_its_limit_and_leaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(IMAGE)
    before = sorted(os.listdir("/proc/self/fd"))
    found = open_modules([module(b"/a.so")] * 5, entered([os.fsencode(tmp_path)]), 2)
    assert [f.problem for f in found] == [None, None, *["too many modules"] * 3]
    for one in found:
        if one.fd is not None:
            os.close(one.fd)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_read_debug_strings_of_a_real_file_as_it_is_and_compressed(tmp_path: Path) -> None:
    program, source = tmp_path / "prog", tmp_path / "a.c"
    source.write_text("int a_long_name(void) { return 0; } int main(void) { return 0; }")
    found = []
    for option in ("--decompress-debug-sections", "--compress-debug-sections=zlib"):
        subprocess.run(["gcc", "-g", "-o", program, source], check=True)
        subprocess.run(["objcopy", option, program], check=True)
        with program.open("rb") as file:
            found.append(read_debug_strings(file.fileno()))
    assert b"a_long_name\0" in found[0]
    assert found[0] == found[1]
    subprocess.run(["strip", program], check=True)
    with program.open("rb") as file:
        assert read_debug_strings(file.fileno()) == b""


def test_read_debuglink_of_a_real_file(tmp_path: Path) -> None:
    program, debug = tmp_path / "prog", tmp_path / "prog.debug"
    source = tmp_path / "a.c"
    source.write_text("int main(void) { return 0; }")
    subprocess.run(["gcc", "-g", "-o", program, source], check=True)
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    with program.open("rb") as file:
        assert read_debuglink(file.fileno()) is None
    subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", program], check=True)
    whole, checksum = program.read_bytes(), zlib.crc32(debug.read_bytes())
    with program.open("rb") as file:
        assert read_debuglink(file.fileno()) == (b"prog.debug", checksum)
    for cut in (*range(0, 80, 3), *range(80, len(whole), 977)):
        program.write_bytes(whole[:cut])
        with program.open("rb") as file:
            assert read_debuglink(file.fileno()) in (None, (b"prog.debug", checksum))


def test_read_soname_of_a_real_library(tmp_path: Path) -> None:
    library, source = tmp_path / "a.so", tmp_path / "a.c"
    source.write_text("int f(void) { return 0; }")
    gcc = ["gcc", "-shared", "-o", str(library), str(source)]
    for options, soname in (["-Wl,-soname,liba.so.1"], b"liba.so.1"), ([], None):
        subprocess.run([*gcc, *options], check=True)
        whole = library.read_bytes()
        with library.open("rb") as file:
            assert read_soname(file.fileno()) == soname
        for cut in range(0, len(whole), 977):
            library.write_bytes(whole[:cut])
            with library.open("rb") as file:
                read_soname(file.fileno())  # nothing is raised


def test_read_debuglink_lying_counts_are_none(tmp_path: Path) -> None:
    head = bytearray(build_image())
    head[40:48] = (1 << 63).to_bytes(8, "little")
    head[60:64] = b"\xff\xff\xfe\xff"
    (tmp_path / "a").write_bytes(head)
    with (tmp_path / "a").open("rb") as file:
        assert read_debuglink(file.fileno()) is None


# -- SEC-71 ----------------------------------------------------------------------------------------

U, GROUP, OTHER = 61001, 61002, 61003


@pytest.fixture
def place(short_tmp: Path) -> Iterator[Path]:
    """Make a directory that everybody can search from the host's root on."""
    if os.geteuid() != 0:
        pytest.skip("needs root: files of other users are made")
    short_tmp.chmod(0o755)
    (short_tmp / "d").mkdir()
    (short_tmp / "d/a.so").write_bytes(IMAGE)
    yield short_tmp


def on_host(path: Path, who: Credentials) -> str | None:
    """Open a file of the host for a crash; return why it was not."""
    search = FileSearch(who)
    (found,) = open_modules([module(os.fsencode(path))], search, 9)
    if found.fd is not None:
        os.close(found.fd)
    kernel = can_read(path, who)
    assert (found.problem is None) is kernel, "the kernel says otherwise"
    return found.problem


def can_read(path: Path, who: Credentials) -> bool:
    """Ask the kernel itself, by a process with these credentials."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(sorted(who.groups))
            os.setgid(OTHER if who.gid is None else who.gid)
            os.setuid(OTHER + 9 if who.uid is None else who.uid)
            os.close(os.open(path, os.O_RDONLY))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


DENIED = "not readable for the crashed user"


def test_sec_71_each_directory_on_the_way_is_searched_as_the_crashed_user(place: Path) -> None:
    user = Credentials(U, U)
    assert on_host(place / "d/a.so", user) is None
    (place / "d").chmod(0o700)
    assert on_host(place / "d/a.so", user) == DENIED
    assert on_host(place / "d/a.so", Credentials(0, 0, overrides=True)) is None
    assert on_host(place / "d/a.so", Credentials(None)) == DENIED
    (place / "d").chmod(0o744)  # may be listed, not searched
    assert on_host(place / "d/a.so", user) == DENIED
    (place / "d").chmod(0o711)
    assert on_host(place / "d/a.so", user) is None


@pytest.mark.parametrize("which", ["gid", "groups"])
def test_sec_71_a_program_of_the_users_group_works(place: Path, which: str) -> None:
    path = place / "d/a.so"
    os.chown(path, 0, GROUP)
    path.chmod(0o750)
    os.chown(place / "d", 0, GROUP)
    (place / "d").chmod(0o710)
    member = Credentials(U, GROUP) if which == "gid" else Credentials(U, U, frozenset({5, GROUP}))
    assert on_host(path, member) is None
    assert on_host(path, Credentials(U, U)) == DENIED
    path.chmod(0o704)  # who is in the group is not "others"
    assert on_host(path, member) == DENIED


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize("bits", [0, 1, 4, 5])
@pytest.mark.parametrize("mask", [0, 1, 5])
@pytest.mark.parametrize("kind", [2, 8], ids=["user", "group"])
@pytest.mark.parametrize("what", ["d", "d/a.so"])
def test_sec_71_access_control_lists_are_the_kernels(
    place: Path, what: str, kind: int, mask: int, bits: int
) -> None:
    none = 0xFFFFFFFF
    named = (kind, bits, U if kind == 2 else GROUP)
    entries = ((1, 7, none), named, (4, 0, none), (16, mask, none), (32, 5, none))
    try:
        os.setxattr(place / what, "system.posix_acl_access", acl(*sorted(entries)))
    except OSError as e:
        if e.errno == errno.ENOTSUP:
            pytest.skip("this file system has no access control lists")
        raise
    for who in (Credentials(U, U), Credentials(U, U, frozenset({GROUP})), Credentials(U, 0)):
        on_host(place / "d/a.so", who)  # compares with the kernel
    (place / "d/a.so").chmod(0o640)
    on_host(place / "d/a.so", Credentials(U, U, frozenset({GROUP})))


def test_sec_71_a_root_that_a_user_names_is_reached_as_that_user(place: Path) -> None:
    """A user's own mounts and chroot(2) name directories that are others on the host."""
    (place / "d").chmod(0o700)
    inner = place / "d/inner"
    inner.mkdir()
    (inner / "a.so").write_bytes(IMAGE)
    crash = build_crash(uid=U, gid=U, root=os.fsencode(inner), status=b"", mountinfo=None)
    layers = b"1 2 0:1 / / rw - overlay o rw,lowerdir=%s" % os.fsencode(inner)
    for named in (crash, replace(crash, root=b"/", mountinfo=layers)):
        for cgroup in (None, "/user.slice/user-1.slice/user@1.service/docker-" + "a" * 64):
            search = plan_search(replace(named, cgroup=cgroup))
            assert open_modules([module(b"/a.so")], search, 9)[0].fd is None
        search = plan_search(replace(named, cgroup="/system.slice/docker-" + "a" * 64 + ".scope"))
        (found,) = open_modules([module(b"/a.so")], search, 9)
        assert found.fd is not None
        os.close(found.fd)


def test_sec_71_debug_files_are_the_modules_own(place: Path) -> None:
    source, program, debug = place / "a.c", place / "d/a.so", place / "d/.debug/a.debug"
    source.write_text("int f(void) { return 0; }")
    debug.parent.mkdir()
    for build_id in (["-Wl,--build-id"], ["-Wl,--build-id=none"]):
        subprocess.run(["gcc", "-g", "-shared", *build_id, "-o", program, source], check=True)
        subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
        subprocess.run(["objcopy", "-g", f"--add-gnu-debuglink={debug}", program], check=True)
        image = program.read_bytes()[:4096]
        own = module(os.fsencode(program), build_id=parse_build_id(image), image=image)
        for wanted in (True, False):
            (found,) = open_modules([own], FileSearch(Credentials(U, U)), 9)
            assert (found.debug_fd is not None) is wanted
            for fd in filter(None, (found.fd, found.debug_fd)):
                os.close(fd)
            source.write_text("int g(void) { return 2; }")
            subprocess.run(["gcc", "-g", "-shared", *build_id, "-o", debug, source], check=True)


def test_build_id_directories_give_what_is_no_longer_at_its_path(place: Path) -> None:
    ids = place / "ids/.build-id" / BUILD_ID[:2]
    ids.mkdir(parents=True)
    (place / "d/a.so").rename(place / "d/old")
    (place / "d/a.so").write_bytes(build_image(b"other" * 4))
    search = FileSearch(Credentials(U, U), build_id_dirs=(os.fsencode(place / "ids"),))
    name = os.fsencode(place / "d/a.so")
    for target, problem in (
        ("../../../d/old", None),
        (str(place / "d/old"), None),
        ("../../../d/a.so", "file has been replaced"),
        ("../../../../../../../../../../proc/self/exe", "file has been replaced"),
        (BUILD_ID[2:], "file has been replaced"),  # a loop
    ):
        link = ids / BUILD_ID[2:]
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        (found,) = open_modules([module(name)], search, 9)
        assert (found.problem or "").startswith(problem or "") and (
            (found.fd is None) is (problem is not None)
        )
        if found.fd is not None:
            os.close(found.fd)
    link.unlink()
    link.symlink_to("../../../d/old")
    (place / "d/old").chmod(0o600)
    assert open_modules([module(name)], search, 9)[0].fd is None


def build_sections(*kinds: int) -> bytes:
    """An ELF file of nothing but sections of these types."""
    head = b"\x7fELF\2\1\1".ljust(40, b"\0") + struct.pack("<Q", 64)
    head = head.ljust(58, b"\0") + struct.pack("<HHH", 64, len(kinds), 0)
    rows = (struct.pack("<IIQQQQIIQQ", 0, kind, 2, 7, 0, 0, 0, 0, 8, 0) for kind in kinds)
    return head + b"".join(rows) + b"rest"


def test_copy_with_unwind_changes_the_type_of_one_section_only(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(build_sections(0, 1, 0x70000001, 3))
    fd = os.open(path, os.O_RDONLY)
    assert foreign_unwind_size(fd) == path.stat().st_size
    copy = copy_with_unwind(fd)
    assert os.pread(copy, 1 << 16, 0) == build_sections(0, 1, 1, 3)
    assert foreign_unwind_size(copy) is None
    os.close(copy)
    os.close(fd)


@pytest.mark.parametrize("raw", [b"", b"\x7fELF", build_sections(0, 1, 3), b"\xff" * 200])
def test_foreign_unwind_size_of_others_is_none(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    assert foreign_unwind_size(fd) is None
    os.close(fd)


def test_open_modules_takes_what_was_kept_with_the_crash(tmp_path: Path) -> None:
    wanted = module(b"/memfd:program")
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / f"file-{wanted.build_id}").write_bytes(IMAGE)
    search = FileSearch(
        Credentials(12345), (Root(os.fsencode(tmp_path)),), kept=(os.fsencode(entry),)
    )
    for changed, problem in ((wanted, None), (module(b"/x", build_id="ab" * 20), "file is gone")):
        (found,) = open_modules([changed], search, 9)
        assert found.problem == problem
        if found.fd is not None:
            assert os.pread(found.fd, 1 << 16, 0) == IMAGE
            os.close(found.fd)


def test_open_modules_looks_where_a_directory_is_mounted_from(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.so").write_bytes(IMAGE)
    search = FileSearch(ROOT, (Root(os.fsencode(tmp_path), entered=True, below=b"/app"),))
    names = {b"/app/lib/a.so": True, b"/lib/a.so": False, b"/apple/lib/a.so": False, b"/app": False}
    for name, there in names.items():
        (found,) = open_modules([module(name)], search, 9)
        assert (found.fd is not None) is there, name
        if found.fd is not None:
            os.close(found.fd)
