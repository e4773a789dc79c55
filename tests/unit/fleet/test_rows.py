"""Lines of hostile hosts: judged, and in a form that PostgreSQL takes."""

import json
from datetime import date
from typing import Any

import pytest

from crashd.domain.crash.model import Crash, Kind, State, build_id_text, to_json
from crashd.domain.fleet.lines import DeletedBy, Deletion, Line, build_line
from crashd.fleet.rows import COLUMNS, Refused, encode, read_row, values
from crashd.fleet.texts import INDEXED_MAX

HOST, OTHER = "ab" * 16, "cd" * 16
TIME_NS = 1_795_412_639 * 10**9
ID = build_id_text(TIME_NS, "b" * 32, 77, 36**7 * 3)
NUMBERS = {"host": 1, "signature": 2, "version": 3, "build": 4, "labels": 5}


def crash(**changes: Any) -> Crash:
    given: dict[str, Any] = {"id": ID, "kind": Kind.PROCESS, "state": State.COMPLETE}
    return Crash(**(given | {"time_ns": TIME_NS, "boot_id": "b" * 32, "signal": 11} | changes))


def line(**changes: Any) -> bytes:
    """Build a line, and change keys of its JSON."""
    document = json.loads(build_line(Line(ID, 5, crash(), {"env": "prod"}, "0.1.0")))
    return json.dumps(document | changes).encode()


def test_read_row_of_a_record_has_its_columns() -> None:
    raw = build_line(
        Line(ID, 5, crash(comm=b"nginx", exe=b"/usr/sbin/nginx"), {"version": "7"}, "0.1.0")
    )
    row = read_row(raw, HOST, "key")
    found = dict(zip(COLUMNS, values(row, NUMBERS), strict=True))
    assert (row.host, row.revision, row.day, row.version) == (HOST, 5, date(2026, 11, 23), "7")
    assert (found["comm"], found["what"], found["exe"]) == ("nginx", "SIGSEGV", "/usr/sbin/nginx")
    assert row.doc == raw, "nothing is encoded again if the line is only a record"


def test_read_row_of_unknown_keys_leaves_them_out() -> None:
    row = read_row(line(evil={"x": 1}), HOST, "key")
    assert "evil" not in json.loads(row.doc)


def test_read_row_of_deletion_has_no_crash() -> None:
    raw = build_line(Line(ID, 9, None, {}, "0.1.0", deletion=Deletion(DeletedBy.FLEET, 1)))
    row = read_row(raw, HOST, "key")
    assert (row.facts, row.reason, row.revision) == (None, "fleet", 9)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "malformed"),
        (b"[1]", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "malformed"),
        (line(analysis={"x": float("nan")}), "malformed"),
        (line(analysis={"x": 1}).replace(b'{"x": 1}', b'{"x": 1e999}'), "malformed"),
        (line(analysis={"x": 1}).replace(b'{"x": 1}', b'{"x": 1e-999999}'), "malformed"),
        (line(analysis={"x": 1}).replace(b'{"x": 1}', b'{"x": ' + b"9" * 5000 + b"}"), "malformed"),
        (line(signal=2**40), "malformed"),
        (line(uid=2**63), "malformed"),
        (line(signature="'; DROP TABLE crash; --"), "malformed"),
        (line(id=ID.replace("20261123", "20261399")), "malformed"),
        (line(schema=2), "newer"),
        (line(revision=0), "malformed"),
        (line(labels={"a b": "x"}), "malformed"),
        (line(fleet={"core": f"cores/v1/{OTHER}/{ID}.core.zst"}), "malformed"),
        (line(core={"path": "../x"}), "malformed"),
        (b'{"id":"' + b"x" * (20 << 20) + b'"}', "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value[:30]),
)
def test_read_row_of_hostile_line_is_refused_with_a_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        read_row(raw, HOST, "key")
    assert caught.value.reason == reason


def test_read_row_escapes_what_jsonb_refuses() -> None:
    raw = line(title="a\0b", frames=[{"function": "\0"}], warnings=["x\ud800y"])
    row = read_row(raw, HOST, "key")
    assert b"\\u0000" not in row.doc
    assert row.title == "a\\x00b"
    row.doc.decode()
    assert json.loads(row.doc)["frames"] == [{"function": "\\x00"}]


def test_values_of_long_texts_fit_an_index() -> None:
    row = read_row(build_line(Line(ID, 5, crash(exe=b"\xff/" * 9000), {}, "0.1.0")), HOST, "key")
    found = dict(zip(COLUMNS, values(row, NUMBERS), strict=True))
    assert len(found["exe"]) == INDEXED_MAX


def test_encode_of_nested_nul_leaves_none() -> None:
    document = to_json(crash()) | {"analysis": {"a\0": ["\0", {"b": "\0"}]}}
    assert b"\\u0000" not in encode(document)
