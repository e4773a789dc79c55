"""Lines of records: complete, bounded, and of one host."""

import json
from dataclasses import replace
from typing import Any

import pytest

from crashd.domain.crash.model import Crash, Kind, State
from crashd.domain.fleet import lines
from crashd.domain.fleet.keys import core_key
from crashd.errors import FormatError, NewerError

HOST = "ab" * 16
ID = "20261127t233000-01234567-4711-k3v9x0ab"
CRASH = Crash(
    ID,
    Kind.PROCESS,
    State.COMPLETE,
    1_795_822_200 * 10**9,
    "0123456789abcdef" * 2,
    comm=b"a\xff\x1b[2J",
    argv=(b"x", b"\xfe"),
    environ=(b"SECRET=1", b"\xff"),
    signature="p2-0123456789abcdef",
)
LINE = lines.Line(
    ID,
    5,
    CRASH,
    {"role": "db"},
    "1.0",
    lines.FleetFiles(core_key(HOST, ID, encrypted=True), None, 4096),
)


def changed(**values: Any) -> bytes:
    return json.dumps({**json.loads(lines.build_line(LINE)), **values}).encode()


def test_line_is_parsed_to_what_it_was_built_from() -> None:
    raw = lines.build_line(LINE)
    assert b"\n" not in raw
    assert lines.parse_line(raw, HOST) == LINE


def test_line_with_encrypted_environ_holds_no_other() -> None:
    raw = lines.build_line(replace(LINE, environ_age="QUJD"))
    assert b"SECRET" not in raw and b"environ_base64" not in raw
    parsed = lines.parse_line(raw, HOST)
    assert parsed.environ_age == "QUJD"
    assert parsed.crash is not None and parsed.crash.environ is None


def test_line_of_a_deleted_crash_holds_nothing_of_it() -> None:
    line = lines.Line(ID, 6, None, {}, "1.0", deletion=lines.Deletion(lines.DeletedBy.FLEET, 9))
    raw = lines.build_line(line)
    assert set(json.loads(raw)) == {"schema", "id", "deleted", "revision", "labels", "crashd"}
    assert lines.parse_line(raw, HOST) == line


def test_line_with_another_hosts_core_is_refused() -> None:
    with pytest.raises(FormatError, match="not its own"):
        lines.parse_line(lines.build_line(LINE), "cd" * 16)


@pytest.mark.parametrize(
    "values",
    [
        {"revision": 0},
        {"revision": 1 << 63},
        {"revision": True},
        {"revision": "5"},
        {"labels": {"a b": "x"}},
        {"labels": {"a": "x\x1b"}},
        {"labels": {"a": 1}},
        {"labels": {"a": "x" * 201}},
        {"labels": {f"l{i}": "" for i in range(17)}},
        {"crashd": None},
        {"crashd": "x" * 65},
        {"environ_age": 1},
        {"fleet": []},
        {"fleet": {"core": 1}},
        {"fleet": {"core": core_key(HOST, ID, encrypted=False), "log": "x"}},
        {"fleet": {"log": core_key(HOST, ID, encrypted=False)}},
        {"fleet": {"stored_bytes": -1}},
        {"fleet": {"reason": "because"}},
        {"deleted": {"reason": "because", "time_ns": 1}},
        {"deleted": {"reason": "fleet", "time_ns": -1}},
        {"deleted": 1},
        {"deleted": {"reason": "fleet", "time_ns": 1}, "id": "../x"},
        {"id": "../x"},
        {"state": "gone"},
    ],
)
def test_malformed_line_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        lines.parse_line(changed(**values), HOST)


@pytest.mark.parametrize("raw", [b"", b"[]", b"[" * 100_000, b"{", b"\xff", b"null"])
def test_what_is_no_line_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        lines.parse_line(raw, HOST)


def test_line_nested_deeper_than_others_read_is_refused() -> None:
    for begin, end in (("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")):
        depth = lines.LEVELS_MAX // len(end)
        values = json.loads(begin * depth + "1" + end * depth)
        with pytest.raises(FormatError, match="levels of nesting"):
            lines.parse_line(changed(kernel={"x": values}), HOST)
    assert lines.parse_line(changed(kernel={"x": [[[1]]] * 1000}), HOST).id == ID


def test_line_over_its_limit_is_refused_unread() -> None:
    with pytest.raises(FormatError, match="at most"):
        lines.parse_line(b" " * (lines.LINE_BYTES + 1), HOST)


@pytest.mark.parametrize("values", [{}, {"deleted": {"reason": "fleet", "time_ns": 1}}])
def test_line_of_a_newer_crashd_is_told_apart(values: dict[str, Any]) -> None:
    with pytest.raises(NewerError):
        lines.parse_line(changed(schema=99, **values), HOST)


def test_next_revision_grows_whatever_the_clock_does() -> None:
    assert lines.next_revision(0, 1000) == 1000
    assert lines.next_revision(1000, 10) == 1001
    assert lines.next_revision(lines.REVISION_MAX, 10) == lines.REVISION_MAX
