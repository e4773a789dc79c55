import pytest

from crashd.domain.tarheaders import (
    BLOCK,
    TarHeader,
    apply_records,
    parse_records,
    parse_tar_header,
)
from crashd.errors import FormatError
from tests.builders.bundle import build_header, build_record, build_tar, seal_header


def test_parse_tar_header_is_what_tarfile_writes() -> None:
    raw = build_tar({"files/0/x": b"abc"})
    assert parse_tar_header(raw[:BLOCK]) == TarHeader("files/0/x", 3, is_extended=False)
    assert parse_tar_header(raw[-BLOCK:]) is None


def test_parse_records_of_a_long_name_are_what_tarfile_writes() -> None:
    name = "files/0/" + "ü" * 120
    raw = build_tar({name: b"abc"})
    header = parse_tar_header(raw[:BLOCK])
    assert header is not None and header.is_extended
    records = parse_records(raw[BLOCK : BLOCK + header.size_bytes])
    following = parse_tar_header(raw[2 * BLOCK : 3 * BLOCK])
    assert following is not None
    assert apply_records(following, records) == TarHeader(name, 3, is_extended=False)


def test_parse_records_of_a_size_beyond_octal() -> None:
    records = parse_records(build_record("size", str(1 << 40)) + build_record("mtime", "1.5"))
    assert apply_records(TarHeader("x", 0, False), records).size_bytes == 1 << 40


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"g", b"K", b"L", b"S"])
def test_parse_tar_header_of_no_file_is_refused(kind: bytes) -> None:
    with pytest.raises(FormatError, match=r"crash\.json, which is not a file"):
        parse_tar_header(build_header(kind=kind))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"x" * 511,
        b"x" * BLOCK,
        build_header()[:-1] + b"x",
        seal_header(build_header().replace(b"ustar", b"tar  ")),
        seal_header(build_header()[:124] + b"\x80" + bytes(11) + build_header()[136:]),  # base 256
        seal_header(build_header()[:124] + b"-0000000001\0" + build_header()[136:]),
        seal_header(build_header()[:124] + bytes(12) + build_header()[136:]),
    ],
)
def test_parse_tar_header_damaged_is_refused(block: bytes) -> None:
    with pytest.raises(FormatError):
        parse_tar_header(block)


@pytest.mark.parametrize(
    "raw",
    [b"x", b"5", b"0 a=b\n", b"3 a", b"999 a=b\n", b"6 a=b", b"5 a=b\n", b"6 =bc\n", b" a=b\n"],
)
def test_parse_records_damaged_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_records(raw)


@pytest.mark.parametrize(
    "records",
    [
        {"size": "-1"},
        {"size": "9" * 30},
        {"size": "٣"},
        {"path": "x" * 3000},
        {"GNU.sparse.map": ""},
    ],
)
def test_apply_records_of_nonsense_is_refused(records: dict[str, str]) -> None:
    with pytest.raises(FormatError):
        apply_records(TarHeader("x", 1, is_extended=False), records)
