"""Messages on sockets: framed, and with descriptors."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator

import pytest

from crashd.base import messages
from crashd.errors import FormatError


def test_pack_then_parse_is_the_same() -> None:
    raw = messages.pack({"verb": "list", "text": "ü\n\0"})
    size = messages.parse_size(raw[: messages.HEADER_SIZE], messages.REQUEST_MAX)
    assert size == len(raw) - messages.HEADER_SIZE
    assert messages.parse(raw[messages.HEADER_SIZE :]) == {"verb": "list", "text": "ü\n\0"}


def test_pack_bytes_that_are_not_utf8_come_through_as_surrogates() -> None:
    assert messages.parse(messages.pack({"t": "\udcff"})[4:]) == {"t": "\udcff"}


@pytest.mark.parametrize("header", [b"", b"\1\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\1\0"])
def test_parse_size_cut_zero_or_over_the_limit_is_refused(header: bytes) -> None:
    with pytest.raises(FormatError):
        messages.parse_size(header, messages.REQUEST_MAX)


def test_parse_size_at_the_limit_is_taken() -> None:
    assert messages.parse_size((65536).to_bytes(4, "little"), 65536) == 65536


@pytest.mark.parametrize("raw", [b"", b"[]", b"5", b"{", b"\xff", b"[" * 200_000, b'"x"', b"null"])
def test_parse_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        messages.parse(raw)


@pytest.fixture(name="stream")
def make_stream() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(name="packets")
def make_packets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_receive_takes_one_message_and_nothing_of_the_next(
    stream: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = stream
    theirs.sendall(messages.pack({"a": 1}) + b"next")
    assert messages.parse(messages.receive(ours, 100)) == {"a": 1}
    assert ours.recv(100) == b"next"


def test_receive_of_a_closed_connection_is_its_end(
    stream: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = stream
    theirs.close()
    with pytest.raises(EOFError):
        messages.receive(ours, 100)


@pytest.mark.parametrize("size", range(1, len(messages.pack({"a": 1}))))
def test_receive_of_a_message_cut_anywhere_is_refused(
    stream: tuple[socket.socket, socket.socket], size: int
) -> None:
    ours, theirs = stream
    theirs.sendall(messages.pack({"a": 1})[:size])
    theirs.close()
    with pytest.raises(FormatError, match="breaks off"):
        messages.receive(ours, 100)


def test_receive_waits_no_longer_than_its_deadline(
    stream: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = stream
    theirs.sendall(messages.pack({"a": 1})[:6])
    with pytest.raises(TimeoutError):
        messages.receive(ours, 100, time.monotonic() + 0.01)


def test_receive_packet_owns_descriptors_that_no_program_inherits(
    packets: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = packets
    messages.send_packet(theirs, b"x", (0, 1))
    packet = messages.receive_packet(ours, 10, 2)
    assert (packet.data, len(packet.descriptors), packet.lacks_descriptors) == (b"x", 2, False)
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in packet.descriptors)
    before = open_fds()
    packet.close()
    assert open_fds() == before - 2


def test_receive_packet_with_more_descriptors_than_asked_for_says_so(
    packets: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = packets
    messages.send_packet(theirs, b"x", (0,) * 8)
    packet = messages.receive_packet(ours, 10, 2)
    assert packet.lacks_descriptors
    packet.close()


def test_receive_packet_that_is_too_long_is_an_error_and_leaks_nothing(
    packets: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = packets
    before = open_fds()
    messages.send_packet(theirs, b"x" * 11, (0,))
    with pytest.raises(OSError) as caught:
        messages.receive_packet(ours, 10, 2)
    assert caught.value.errno == errno.EMSGSIZE
    assert open_fds() == before


def test_read_peer_names_the_process_at_the_other_end(
    packets: tuple[socket.socket, socket.socket],
) -> None:
    assert messages.read_peer(packets[0]) == (os.getpid(), os.getuid(), os.getgid())
