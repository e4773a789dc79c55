"""A bundle that is anybody's: what is taken of it, and what it can cost."""

import json
import os
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
import zstandard

from crashd.cli.open.scratch import nameless_file, private_directory
from crashd.cli.open.unbundle import (
    CHUNK,
    DEFAULT,
    BundleLimits,
    parse_document,
    plan_layout,
    unpack,
    unpack_tar,
)
from crashd.errors import CrashdError, FormatError, NotFoundError
from tests.builders.bundle import (
    CORE,
    EXE,
    MODULES,
    build_header,
    build_record,
    build_tar,
    bundle_members,
    pad,
    sum_up,
)

MIB = 1 << 20


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR, in which nothing stays."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    assert list(directory.iterdir()) == []


class Stream:
    """Bytes that never end, and how many of them were wanted."""

    def __init__(self, *parts: bytes, then: bytes = bytes(MIB)) -> None:
        self._parts = chain(parts, repeat(then))
        self._left = b""
        self.taken = 0
        self.largest = 0

    def read(self, size: int) -> bytes:
        self.largest = max(self.largest, size)
        if not self._left:
            self._left = next(self._parts)
        data, self._left = self._left[:size], self._left[size:]
        self.taken += len(data)
        return data


def write(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(zstandard.compress(build_tar(members)))
    return path


def test_unpack_gives_core_executable_and_libraries(tmp_path: Path, temporary: Path) -> None:
    path = write(tmp_path / "x.tar.zst", sum_up(bundle_members()))
    before = os.umask(0o077)
    try:
        with unpack(path) as unpacked:
            assert os.pread(unpacked.core, len(CORE) + 1, 0) == CORE
            assert os.fstat(unpacked.core).st_nlink == 0
            root = Path(f"/proc/self/fd/{unpacked.root}")
            assert unpacked.exe == "usr/bin/x"
            assert (root / unpacked.exe).read_bytes() == EXE
            assert (root / "usr/lib/libc.so.6").exists()
            for place in root.rglob("*"):
                assert place.stat().st_mode & 0o777 == (0o755 if place.is_dir() else 0o644)
            (private,) = temporary.iterdir()
            assert private.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_unpack_of_names_that_are_too_long_is_without_them(tmp_path: Path) -> None:
    """The kernel adds " (deleted)" to a name that may have 255 bytes."""
    name = "n" * 250
    modules = [
        {**MODULES[0], "path": f"/usr/bin/{name} (deleted)", "member": f"files/0/{name}"},
        MODULES[1],
        {**MODULES[1], "path": "/" + "d/" * 70 + "deep", "member": "files/2/deep"},
        {**MODULES[1], "path": "/usr/lib/libc.so.6/below", "member": "files/3/below"},
        {**MODULES[1], "path": "/" + "l" * 200 + "/" + "m" * 300, "member": "files/4/m"},
    ]
    members = bundle_members(modules_json=json.dumps(modules).encode())
    members |= {
        f"files/0/{name}": b"1",
        "files/2/deep": b"2",
        "files/3/below": b"3",
        "files/4/m": b"4",
    }
    path = write(tmp_path / "x.tar.zst", sum_up(members))
    with unpack(path) as unpacked:
        assert unpacked.exe is None
        found = [p for p in Path(f"/proc/self/fd/{unpacked.root}").rglob("*") if p.is_file()]
        assert [p.name for p in found] == ["libc.so.6"]


def refused(members: dict[str, bytes], limits: BundleLimits = DEFAULT) -> str:
    """Why these are no bundle."""
    stream = Stream(build_tar(members))
    with (
        private_directory() as directory,
        nameless_file() as core,
        pytest.raises(FormatError) as caught,
    ):
        unpack_tar(stream.read, directory, core, limits)
    return str(caught.value)


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        (BundleLimits(members=3), "more than 3 files"),
        (
            BundleLimits(document_bytes=30),
            "crash.json in the bundle has 34 bytes, more than the 30",
        ),
        (BundleLimits(values=3), "crash.json in the bundle has too many values"),
        (BundleLimits(sums_bytes=40), "SHA256SUMS in the bundle has"),
        (BundleLimits(report_bytes=3), "report.txt in the bundle has"),
        (BundleLimits(member_bytes=20), "core.zst in the bundle has"),
        (BundleLimits(files_bytes=30), "files/1/libc.so.6 in the bundle has"),
        (BundleLimits(core_bytes=300_000), "the core in the bundle has more than 300000 bytes"),
    ],
)
def test_sec_86_bundle_is_refused_at_each_limit(
    limit: BundleLimits, why: str, tmp_path: Path, temporary: Path
) -> None:
    path = write(tmp_path / "x.tar.zst", sum_up(bundle_members()))
    with pytest.raises(FormatError, match=why), unpack(path, limit):
        pass
    assert list(temporary.iterdir()) == []
    with unpack(path):
        pass  # the limit was what it was refused for


HUGE = build_record("comment", "x" * 100_000)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (build_header(b"PaxHeaders/x", 8 << 30, b"x"), "extended header of the archive is 85899"),
        (build_header(b"PaxHeaders/x", len(HUGE), b"x") + HUGE, "extended header"),
        (build_header(b"././@LongLink", 8 << 30, b"L"), "which is not a file"),
        (build_header(b"././@LongLink", 8 << 30, b"K"), "which is not a file"),
        (build_header(b"pax_global_header", 8 << 30, b"g"), "which is not a file"),
        (build_header(b"crash.json", 8 << 30), "has 8589934592 bytes"),
        (build_header(b"modules.json", 8 << 30), "has 8589934592 bytes"),
        (build_header(b"SHA256SUMS", 8 << 30), "has 8589934592 bytes"),
        (build_header(b"report.txt", 8 << 30), "has 8589934592 bytes"),
        (build_header(b"core.zst", 0, b"S"), "which is not a file"),
        (
            build_header(b"h", len(build_record("size", str(1 << 50))), b"x")
            + pad(build_record("size", str(1 << 50)))
            + build_header(b"core.zst"),
            "has 1125899906842624 bytes",
        ),
        (build_header(b"files/0/x\n", 0) * 2000, "has an unexpected member"),
        (b"".join(build_header(b"files/%d/x" % n) for n in range(2000)), "more than 1024 files"),
    ],
)
def test_sec_86_no_header_makes_it_read_or_allocate_more(head: bytes, why: str) -> None:
    """Of an archive that never ends little is read, in small pieces."""
    stream = Stream(head, then=b"\xff" * MIB)
    with (
        private_directory() as directory,
        nameless_file() as core,
        pytest.raises(FormatError, match=why),
    ):
        unpack_tar(stream.read, directory, core)
    assert stream.taken <= 2 * MIB
    assert stream.largest <= CHUNK


def test_sec_86_bombs_of_zstd_are_refused(tmp_path: Path) -> None:
    """By its window, which the reader has to allocate, and by what it unpacks to."""
    path = tmp_path / "x.tar.zst"
    parameters = zstandard.ZstdCompressionParameters(window_log=25)
    path.write_bytes(
        zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(64 * MIB))
    )
    with pytest.raises(FormatError, match="is not a bundle, or is damaged"), unpack(path):
        pass
    bomb = zstandard.compress(bytes(64 * MIB))
    assert len(bomb) < 10_000
    limits = BundleLimits(core_bytes=MIB)
    assert "more than 1048576 bytes" in refused(bundle_members(core_zst=bomb), limits)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"crash_json": b"["}, "crash.json in the bundle is damaged"),
        # Python 3.14 can parse this
        ({"crash_json": b"[" * 50_000 + b"]" * 50_000}, "in the bundle is damaged"),
        ({"crash_json": b"9" * 10_000}, "crash.json in the bundle is damaged"),
        ({"crash_json": b"\xff"}, "crash.json in the bundle is damaged"),
        ({"crash_json": b"[]"}, "crash.json or modules.json in the bundle is damaged"),
        ({"modules_json": b"{}"}, "crash.json or modules.json in the bundle is damaged"),
        ({"modules_json": b"[1]"}, "modules.json in the bundle is damaged"),
        ({"modules_json": b"[" + b"[],[]," * 600_000 + b"1]"}, "too many values"),
        ({"core_zst": b"nonsense"}, "stored core is damaged"),
        ({"core_zst": None}, "has no core"),
        ({"crash_json": None}, "no crash.json"),
        ({"modules_json": None}, "no modules.json"),
    ],
)
def test_sec_86_wrong_member_is_one_line(changed: dict[str, bytes | None], why: str) -> None:
    said = refused(sum_up(bundle_members(**changed)))
    assert why in said
    assert "\n" not in said


@pytest.mark.parametrize("sums", [b"", b"\xff", b"x  y\n", b"\n" * 9, b"0" * 64 + b"  core.zst\n"])
def test_unpack_with_wrong_sums_is_refused(sums: bytes) -> None:
    assert "damaged" in refused({**bundle_members(), "SHA256SUMS": sums})


def test_unpack_cut_anywhere_is_refused() -> None:
    raw = build_tar(sum_up(bundle_members()))
    end = raw.rindex(b"SHA256SUMS\0")
    for size in range(0, end + 512, 97):
        pieces = iter([raw[:size]])
        left = b""

        def read(wanted: int) -> bytes:
            nonlocal left
            left = left or next(pieces, b"")  # noqa: B023 - called before the next one
            data, left = left[:wanted], left[wanted:]
            return data

        with (
            private_directory() as directory,
            nameless_file() as core,
            pytest.raises(FormatError),
        ):
            unpack_tar(read, directory, core)


@pytest.mark.parametrize(
    "path",
    ["../x", "/../x", "/a/../../x", "", "/", "/a\0b", "/\ud800", 7, None, ["/x"], {"a": 1}],
)
def test_plan_layout_of_a_path_that_is_none_plans_nothing(path: object) -> None:
    assert plan_layout({"exe": path}, [{**MODULES[0], "path": path}], 64) == (None, {})


@pytest.mark.parametrize("member", [7, None, ["x"], {"a": 1}])
def test_plan_layout_of_a_member_that_is_no_name_plans_nothing(member: object) -> None:
    assert plan_layout({"exe": []}, [{**MODULES[0], "member": member}], 64) == (None, {})


def test_plan_layout_of_one_member_twice_takes_the_first() -> None:
    twice = [MODULES[0], {**MODULES[0], "path": "/usr/bin/y"}]
    assert plan_layout({}, twice, 64)[1] == {"files/0/x": ("usr", "bin", "x")}


def test_parse_document_counts_no_more_than_there_are() -> None:
    assert parse_document("x", b'{"a": [1, 2]}', 4) == {"a": [1, 2]}


def test_unpack_of_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot open"), unpack(tmp_path / "none.tar.zst"):
        pass
    fifo = tmp_path / "f.tar.zst"
    os.mkfifo(fifo)
    with pytest.raises(FormatError, match="is not a regular file"), unpack(fifo):
        pass


def test_unpack_on_a_full_disk_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.tar.zst", sum_up(bundle_members()))
    real = os.fstatvfs

    def full(fd: int) -> os.statvfs_result:
        found = list(real(fd))
        found[4] = 0
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", full)
    with pytest.raises(CrashdError, match="has no room"), unpack(path):
        pass
