import json
from dataclasses import replace
from typing import Any

import pytest

from crashd.domain.crash import boundedrecord
from crashd.domain.crash.boundedrecord import (
    LEAST_BYTES,
    METADATA_BYTES,
    RECORD_BYTES,
    bounded,
    slim,
)
from crashd.domain.crash.model import Crash, encode, from_json, put_bytes, to_json
from tests.builders.crashes import build_crash

MIB = 1 << 20


def read(raw: bytes) -> Crash:
    return from_json(json.loads(raw))


def test_ordinary_record_is_what_it_was() -> None:
    crash = build_crash(maps=b"1-2 r-xp 0 /bin/x\n" * 500, environ=(b"A=\xff",))
    after, raw = bounded(crash)
    assert after == crash
    assert read(raw) == crash
    assert raw == encode(to_json(crash))


WORST: dict[str, Any] = {
    "maps": b"\x01\xff" * (4 * MIB),
    "mountinfo": b"\xff" * MIB,
    "environ": (b"A=" + b"\xff" * (MIB // 4),),
    "argv": (b"'\xff" * (MIB // 32),),
}
"""The most that is read of a process, each byte of it six of JSON or more."""


@pytest.mark.parametrize("max_bytes", [RECORD_BYTES, METADATA_BYTES, LEAST_BYTES])
def test_worst_process_has_a_record_that_can_be_read_and_names_what_is_cut(max_bytes: int) -> None:
    crash = build_crash(**WORST)
    assert len(encode(to_json(crash))) > 32 * MIB
    after, raw = bounded(crash, max_bytes)
    assert max_bytes // 2 < len(raw) <= max_bytes
    assert read(raw) == after
    assert after.warnings[-1].startswith("cut to keep this record small: maps after ")
    assert f"of {8 * MIB} bytes" in after.warnings[-1]
    assert bounded(after, max_bytes) == (after, raw), "what was cut is not cut again"


def test_what_does_not_fit_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's process once cost four seconds of a CPU each time its record was written."""
    encoded = 0

    def count(out: dict[str, Any], key: str, value: bytes | None) -> None:
        nonlocal encoded
        encoded += len(value or b"")
        put_bytes(out, key, value)

    monkeypatch.setattr(boundedrecord, "put_bytes", count)
    after, _ = bounded(build_crash(maps=b"\x01\xff" * (4 * MIB)))
    assert after.maps is not None
    assert encoded < 4 * len(after.maps) < 4 * MIB


def test_least_telling_is_cut_first() -> None:
    maps = b"7f0000000000-7f0000001000 r-xp 00000000 00:00 0 /lib/x.so\n" * 100_000
    crash = build_crash(maps=maps, environ=(b"A=1",), mountinfo=b"m" * 1000)
    after, _ = bounded(crash)
    assert after.maps is not None
    assert RECORD_BYTES * 0.85 < len(after.maps) < RECORD_BYTES
    assert after.maps.endswith(b"x.so\n"), "a line is whole"
    assert (after.environ, after.mountinfo, after.argv) == (
        crash.environ,
        crash.mountinfo,
        crash.argv,
    )


NAMES: dict[str, Any] = {
    **dict.fromkeys(("exe", "cwd", "root", "nodename", "comm"), b"\x01" * 4096),
    **dict.fromkeys(("unit", "user_unit", "slice", "cgroup", "session", "title"), "\x01" * 4096),
    "kernel": {"path": "\x01" * 4096, "type": "oops"},
    "analysis": {"state": "done", "warnings": ["\x01" * 100_000]},
    "warnings": ("\x01" * 5000,) * 100,
}


def test_names_are_cut_where_nothing_else_is_left() -> None:
    after, raw = bounded(build_crash(**WORST, **NAMES), LEAST_BYTES)
    assert len(raw) <= LEAST_BYTES
    assert read(raw) == after
    assert after.exe.startswith(b"\x01" * 30)
    assert after.analysis == {"state": "done"}
    for name in ("exe", "unit", "warnings", "analysis"):
        assert name in after.warnings[-1]


def test_lone_surrogate_does_not_make_a_record_unreadable() -> None:
    crash = build_crash(title="x\udcff", threads=({"tid": 1, "name": "\ud800"},))
    _, raw = bounded(crash)
    assert read(raw).title == "x\\udcff"
    assert read(raw).threads == ({"tid": 1, "name": "\\ud800"},)


def test_text_is_cut_between_characters() -> None:
    crash = build_crash(maps="ä".encode() * (4 * MIB))
    after, raw = bounded(crash)
    assert after.maps is not None
    assert after.maps.decode()
    assert len(raw) > RECORD_BYTES * 0.85


def test_slim_keeps_what_a_row_shows() -> None:
    crash = build_crash(**WORST, log=("x",), frames=({"function": "f"},))
    assert slim(crash) == replace(build_crash(), argv=crash.argv)
