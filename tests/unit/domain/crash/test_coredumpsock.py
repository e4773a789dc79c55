"""The handshake's words, by byte."""

import struct

import pytest

from crashd.domain.crash.coredumpsock import build_ack, check_mark, parse_request
from crashd.errors import FormatError


def test_request_and_ack_are_the_kernels_structs() -> None:
    assert parse_request(struct.pack("=IIQ", 16, 16, 0xF)) == (16, 0xF)
    assert parse_request(struct.pack("=IIQ", 32, 24, 0x1F)) == (32, 0x1F)
    assert build_ack(9) == struct.pack("=IIQ", 16, 0, 9)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(15),
        struct.pack("=IIQ", 8, 16, 0xF),
        struct.pack("=IIQ", 16, 8, 0xF),
        struct.pack("=IIQ", 5000, 16, 0xF),
        struct.pack("=IIQ", 16, 16, 0x3),
    ],
)
def test_parse_request_nonsense_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_request(raw)


def test_check_mark() -> None:
    check_mark(struct.pack("=I", 0))
    for raw in (b"", b"\0", struct.pack("=I", 3), struct.pack("=I", 77)):
        with pytest.raises(FormatError):
            check_mark(raw)
