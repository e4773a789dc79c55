"""Lines judged in one pass: only those that the model takes, and with the same result."""

import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from crashd.domain.crash.model import (
    PLAIN_TYPES,
    Capture,
    Core,
    Crash,
    Disposition,
    Engine,
    Identity,
    Kind,
    Mode,
    State,
    build_id_text,
)
from crashd.domain.fleet.keys import core_key
from crashd.domain.fleet.lines import CoreReason, FleetFiles, Line, build_line
from crashd.fleet import rows
from crashd.fleet.rows import Refused, Row, read_row
from crashd.fleet.usual import read_usual
from tests.yardstick import slowness

HOST = "ab" * 16
TIME_NS = 1_795_412_639_123_456_789
ID = build_id_text(TIME_NS, "b" * 32, 77, 36**7 * 3)
_PLAIN: dict[Any, Any] = {int: 7, str: "a ü", bool: True, dict: {"kind": "x", "n": [1, None]}}
_OWN = frozenset({"signature", "kernel", "token"})


def crash(**changes: Any) -> Crash:
    """Make a crash with a value in every field."""
    given: dict[str, Any] = {"id": ID, "kind": Kind.PROCESS, "state": State.COMPLETE}
    given |= {"time_ns": TIME_NS, "boot_id": "b" * 32, "fault_address": 2**64 - 1}
    given |= {key: _PLAIN[kind] for key, kind in PLAIN_TYPES if key not in _OWN}
    texts = ("hostname", "comm", "thread_comm", "exe", "cwd", "root", "nodename", "maps", "limits")
    given |= {key: f"{key} ü".encode() for key in (*texts, "status", "mountinfo", "open_fds")}
    given |= {"auxv": b"\xff\0\1", "argv": (b"a", "-b ü".encode()), "environ": (b"A=1",)}
    given |= {"signature": "p2-0123456789abcdef", "log": ("a", "b"), "report": ("c",)}
    given |= {"frames": ({"function": "f", "line": 1}, {"function": "g", "inlined": [{"x": 1}]})}
    given |= {"threads": ({"tid": 1, "crashed": True, "pc": 5},), "warnings": ("w",)}
    given["capture"] = Capture(
        Mode.SOCKET, Engine.STREAM, Disposition.MINI, Identity.KERNEL, 1, 2, 3, 4, "because"
    )
    given["core"] = Core("core.zst", 1, 2, 3, 4, complete=True)
    return Crash(**(given | changes))


def line(record: Crash | None = None, *, files: FleetFiles | None = None) -> bytes:
    if files is None:
        files = FleetFiles(core_key(HOST, ID, encrypted=True), None, 5, None, mini=True)
    labels = {"env": "prod", "version": "7 ü"}
    return build_line(Line(ID, 5, record or crash(), labels, "0.1.0", files))


def judge(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> Row | str:
    """Return what the model makes of a line, or why it refuses it."""
    with monkeypatch.context() as patch:
        patch.setattr(rows, "read_usual", lambda *_: None)
        try:
            return read_row(raw, HOST, "key")
        except Refused as e:
            return e.reason


LINES = [
    line(),
    line(crash(environ=None, auxv=None, pod=None, signal=None, pid=None, title="")),
    line(crash(kind=Kind.KERNEL, signal=None, kernel={"release": "6.1", "panic_kind": "oops"})),
    line(crash(kind=Kind.KERNEL, kernel={"release": "", "panic_kind": None})),
    line(crash(exe=b"/x" * 900, title="ü" * 3000, comm="ü".encode() * 900)),
    line(files=FleetFiles(None, None, 0, CoreReason.POLICY)),
    line(files=FleetFiles(None, f"cores/v1/{HOST}/{ID}.log.zst", 0, CoreReason.ENOUGH)),
    line(Crash(ID, Kind.PROCESS, State.LOST, TIME_NS, "")),
]


@pytest.mark.parametrize("raw", LINES, ids=range(len(LINES)))
def test_read_usual_of_what_crashd_writes_is_what_the_model_makes_of_it(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_usual(raw, HOST, rows.TITLE_MAX) is not None
    assert read_row(raw, HOST, "key") == judge(raw, monkeypatch)


_VALUES = (
    *("null", "true", "0", "-1", "1.5", "1e999", "1e-999", "NaN", "Infinity", "-Infinity", "[]"),
    *("{}", '"x"', '""', '"\\u0000"', '"\\ud800"', '"\x00"', "9" * 30, "9" * 5000, "-" + "9" * 30),
    *("[NaN]", '{"a":NaN,"a":1}', '{"a":1e999}', '[{"a":1e-400}]', "[" * 300 + "]" * 300, "0.0"),
    *('{"a":{"b":{"c":[]}}}', '"0x1"', '"0x1_0"', f'"{ID}"', '"process"', '"p2-00000000"', "2"),
)
VALUES = [value.encode() for value in _VALUES]


def _mutants(chance: random.Random, count: int) -> Iterator[bytes]:
    """Yield lines of which one thing is changed, or a few."""
    values = re.compile(rb'(?<=:)(?:"[^"]*"|[^,{}\[\]"]+)')
    for _ in range(count):
        raw = chance.choice(LINES)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            found = list(values.finditer(raw))
            if not found:
                break
            place = chance.choice(found)
            new = chance.choice((*VALUES, *(one[0] for one in found)))
            name = raw[: place.start()].rpartition(b",")[2]
            match chance.randrange(6):
                case 0 | 1:
                    raw = raw[: place.start()] + new + raw[place.end() :]
                case 2:  # the same key twice, in either order
                    raw = raw[: place.end()] + b"," + name + new + raw[place.end() :]
                case 3:
                    key = name.replace(b'":', chance.choice((b'" :', b'"\t:', b'"  \n:')))
                    raw = raw[: place.end()] + b"," + key + new + raw[place.end() :]
                case 4:
                    index = chance.randrange(len(raw))
                    raw = raw[:index] + bytes([chance.randrange(256)]) + raw[index + 1 :]
                case _:
                    index = chance.randrange(len(raw))
                    raw = raw[:index] + raw[index + chance.choice((1, 1, 9, len(raw))) :]
        yield raw


@pytest.mark.parametrize("seed", range(4))
def test_read_usual_of_changed_lines_takes_none_that_the_model_refuses(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    for raw in _mutants(random.Random(seed), 1500):
        if read_usual(raw, HOST, rows.TITLE_MAX) is None:
            continue
        taken += 1
        try:
            row: Row | str = read_row(raw, HOST, "key")
        except Refused as e:
            row = e.reason
        assert row == judge(raw, monkeypatch), raw
    assert taken > 100


def test_read_usual_of_many_nested_lists_takes_no_longer_than_others() -> None:
    nested = b",".join([b"[" * 190 + b"]" * 190] * 100)  # 38 kB, which took three seconds
    raw = LINES[3].replace(b'"kernel":{', b'"kernel":{"x":[' + nested + b"],")
    began = time.process_time()
    assert read_usual(raw, HOST, 9) is not None
    assert time.process_time() - began < 0.5 * slowness()


def test_read_usual_of_equal_keys_leaves_them_to_the_model() -> None:
    raw = LINES[0]
    for twice in (b'"pid":NaN,"pid":', b'"pid" :NaN,"pid":', b'"pid"\t:NaN,"pid":'):
        assert read_usual(raw.replace(b'"pid":', twice), HOST, 9) is None
    inner = raw.replace(b'"function":"f"', b'"function":1e999,"function":"f"')
    assert read_usual(inner, HOST, 9) is None


def test_read_usual_of_another_hosts_core_leaves_it_to_the_model() -> None:
    assert read_usual(LINES[0], "cd" * 16, 9) is None


def test_read_usual_knows_every_key_of_the_model() -> None:
    for key in json.loads(LINES[0]):
        document = json.loads(LINES[0])
        document[key] = object
        raw = json.dumps(document, separators=(",", ":"), default=lambda _: [[]])
        assert read_usual(raw.encode(), HOST, 9) is None, f"{key} may be anything"
