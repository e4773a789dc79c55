"""vmlinux files on disk: the right one, and nothing else."""

import os
from pathlib import Path

import pytest

from crashd.errors import FormatError, NotFoundError
from crashd.store.vmlinuxfiles import find_vmlinux, open_vmlinux
from tests.unit.domain.elf.test_vmlinux import BUILD_ID, build

RELEASE, WANTED = "6.1.0-test", BUILD_ID.hex()
PLACE = f"usr/lib/debug/boot/vmlinux-{RELEASE}"


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_vmlinux_is_found_by_its_build_id_among_others(short_tmp: Path) -> None:
    assert find_vmlinux(short_tmp, RELEASE, WANTED).path is None
    other = put(short_tmp / PLACE, build(build_id=bytes(20)))
    bare = put(short_tmp / f"boot/vmlinux-{RELEASE}", build(sections=b"\0.text\0"))
    none = put(short_tmp / f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux", b"no ELF file")
    found = find_vmlinux(short_tmp, RELEASE, WANTED, ["/srv"])
    assert found.path is None
    assert set(found.refused) == {
        f"{other}: is of another kernel: its build-id is {bytes(20).hex()}",
        f"{bare}: has no debug information",
        f"{none}: is not an ELF file: neither vmlinux nor its debug information",
    }
    own = put(short_tmp / "srv/vmlinux", build())
    found = find_vmlinux(short_tmp, RELEASE, WANTED, ["/srv"])
    status = own.stat()
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    assert (found.path, found.stamp) == (own, stamp)


def test_link_is_followed_and_directories_and_fifos_do_not_block(short_tmp: Path) -> None:
    path = short_tmp / PLACE
    put(short_tmp / "elsewhere", build())
    path.parent.mkdir(parents=True)
    path.symlink_to(short_tmp / "elsewhere")
    assert find_vmlinux(short_tmp, RELEASE, WANTED).path == path
    path.unlink()
    path.mkdir()
    assert find_vmlinux(short_tmp, RELEASE, WANTED).path is None
    path.rmdir()
    os.mkfifo(path)
    assert find_vmlinux(short_tmp, RELEASE, WANTED).path is None
    with pytest.raises(FormatError, match="not a regular file"):
        open_vmlinux(path, WANTED)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_file_that_others_can_change_is_refused_by_root(short_tmp: Path) -> None:
    path = put(short_tmp / PLACE, build())
    os.chown(path, 12345, 12345)
    found = find_vmlinux(short_tmp, RELEASE, WANTED)
    assert found.path is None
    assert "belongs to uid 12345 and not to root" in found.refused[0]
    os.chown(path, 0, 0)
    path.parent.chmod(0o777)
    found = find_vmlinux(short_tmp, RELEASE, WANTED)
    assert found.path is None
    assert "can be written by others than root" in found.refused[0]


def test_file_that_was_replaced_meanwhile_is_not_opened(short_tmp: Path) -> None:
    path = put(short_tmp / PLACE, build())
    os.close(open_vmlinux(path, WANTED))
    put(path, build(build_id=bytes(20)))
    with pytest.raises(FormatError, match="another kernel"):
        open_vmlinux(path, WANTED)
    path.unlink()
    with pytest.raises(NotFoundError):
        open_vmlinux(path, WANTED)
