"""Files that a core names: opened without being led anywhere."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crashd.domain.modules import Module
from crashd.edge.modulefiles import ModuleFile, open_modules, read_debuglink
from tests.builders.elfcore import build_image

IMAGE = build_image()
BUILD_ID = bytes(range(20)).hex()


def module(name: bytes, **more: object) -> Module:
    values: dict[str, object] = {"build_id": BUILD_ID, "image": IMAGE, "deleted": False, **more}
    return Module(name=name, start=0x1000, end=0x2000, **values)  # type: ignore[arg-type]


def open_one(
    wanted: Module, roots: list[bytes], uid: int | None = 0, files_max: int = 9
) -> ModuleFile:
    found = open_modules([wanted], roots, uid, files_max)[0]
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
    assert open_one(module(b"/a.so"), roots[:2]).problem == "file is another one now"
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
    path = tmp_path / "a.so"
    path.write_bytes(IMAGE)
    path.chmod(0o640)
    owner = path.stat().st_uid
    roots = [os.fsencode(tmp_path)]
    assert open_one(module(b"/a.so"), roots, owner).fd is not None
    assert open_one(module(b"/a.so"), roots, owner + 7).problem == (
        "not readable for the crashed user"
    )
    path.chmod(0o644)
    assert open_one(module(b"/a.so"), roots, owner + 7).fd is not None


def test_open_modules_without_a_build_id_a_deleted_file_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(IMAGE)
    roots = [os.fsencode(tmp_path)]
    unknown = {"build_id": None, "image": b""}
    assert open_one(module(b"/a.so", **unknown), roots).fd is not None
    assert open_one(module(b"/a.so", **unknown, deleted=True), roots).fd is None


def test_open_modules_stops_at_its_limit_and_leaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(IMAGE)
    before = sorted(os.listdir("/proc/self/fd"))
    found = open_modules([module(b"/a.so")] * 5, [os.fsencode(tmp_path)], 0, 2)
    assert [f.problem for f in found] == [None, None, *["too many modules"] * 3]
    for one in found:
        if one.fd is not None:
            os.close(one.fd)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_read_debuglink_of_a_real_file(tmp_path: Path) -> None:
    program, debug = tmp_path / "prog", tmp_path / "prog.debug"
    source = tmp_path / "a.c"
    source.write_text("int main(void) { return 0; }")
    subprocess.run(["gcc", "-g", "-o", program, source], check=True)
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    with program.open("rb") as file:
        assert read_debuglink(file.fileno()) is None
    subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", program], check=True)
    whole = program.read_bytes()
    with program.open("rb") as file:
        assert read_debuglink(file.fileno()) == b"prog.debug"
    for cut in (*range(0, 80, 3), *range(80, len(whole), 977)):
        program.write_bytes(whole[:cut])
        with program.open("rb") as file:
            assert read_debuglink(file.fileno()) in (None, b"prog.debug")


def test_read_debuglink_lying_counts_are_none(tmp_path: Path) -> None:
    head = bytearray(build_image())
    head[40:48] = (1 << 63).to_bytes(8, "little")
    head[60:64] = b"\xff\xff\xfe\xff"
    (tmp_path / "a").write_bytes(head)
    with (tmp_path / "a").open("rb") as file:
        assert read_debuglink(file.fileno()) is None
