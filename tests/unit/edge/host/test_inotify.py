import struct

import pytest

from crashd.edge.host.inotify import parse_events


def event(mask: int, name: bytes = b"", padding: int = 0) -> bytes:
    padded = name + padding * b"\0"
    return struct.pack("iIII", 1, mask, 0, len(padded)) + padded


@pytest.mark.parametrize("name", [b"", b"a", b"\xff\n", 255 * b"x", b"a b"])
def test_parse_events_names_are_bytes_without_padding(name: bytes) -> None:
    raw = event(0x80, name, padding=0 if not name else 16) + event(0x8, b"next", padding=12)
    assert parse_events(raw) == [(0x80, name), (0x8, b"next")]


def test_parse_events_nothing_is_nothing() -> None:
    assert parse_events(b"") == []


def test_parse_events_cut_anywhere_ends() -> None:
    raw = event(0x80, b"first", 11) + event(0x8, b"second", 10)
    for size in range(len(raw)):
        found = parse_events(raw[:size])
        assert len(found) <= 2
        if size < 32:
            assert all(b"first".startswith(name) for _, name in found)


def test_parse_events_hostile_length_ends() -> None:
    assert parse_events(struct.pack("iIII", 1, 2, 0, 2**32 - 1) + b"x") == [(2, b"x")]
