"""Messages on the control socket."""

import pytest

from crashd.domain import frames
from crashd.errors import FormatError


def test_pack_then_parse_is_the_same() -> None:
    raw = frames.pack({"verb": "list", "text": "ü\n\0"})
    size = frames.parse_size(raw[: frames.HEADER_SIZE], frames.REQUEST_MAX)
    assert size == len(raw) - frames.HEADER_SIZE
    assert frames.parse(raw[frames.HEADER_SIZE :]) == {"verb": "list", "text": "ü\n\0"}


def test_pack_bytes_that_are_not_utf8_come_through_as_surrogates() -> None:
    assert frames.parse(frames.pack({"t": "\udcff"})[4:]) == {"t": "\udcff"}


@pytest.mark.parametrize("header", [b"", b"\1\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\1\0"])
def test_parse_size_cut_zero_or_over_the_limit_is_refused(header: bytes) -> None:
    with pytest.raises(FormatError):
        frames.parse_size(header, frames.REQUEST_MAX)


def test_parse_size_at_the_limit_is_taken() -> None:
    assert frames.parse_size((65536).to_bytes(4, "little"), 65536) == 65536


@pytest.mark.parametrize("raw", [b"", b"[]", b"5", b"{", b"\xff", b"[" * 200_000, b'"x"', b"null"])
def test_parse_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        frames.parse(raw)
