"""What hostile hosts write into every field, in everything that shows it to people."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from crashd.domain.crash.model import Crash, Kind
from crashd.domain.fleet.lines import LABELS_MAX
from crashd.fleet.main import main
from tests.integration.fleetindex import FleetIndex, fleet, make_crash, make_line, postgres_server
from tests.integration.test_fleetquestions import crashctl

__all__ = ["fleet", "postgres_server"]
EVIL = "\x1b[31m\x07\x9b2J\x85\u202e\u200b\u2028\r<script>'\"; DROP TABLE crash"
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff0-\uffff]"
)
FIXED = frozenset(
    ("id", "kind", "state", "time_ns", "boot_id", "capture", "core", "token", "pinned")
) | {"signature", "evicted"}
KERNEL_KEYS = "name namespace container node release panic_kind path dump log_file tainted cause"


def hostile_values() -> dict[str, Any]:
    """Make a value for each field of a record that is text, or holds some."""
    found: dict[str, Any] = {}
    for one in fields(Crash):
        kind = str(one.type)
        match "bytes" in kind, "str" in kind, "tuple" in kind, "ict" in kind or "Mapping" in kind:
            case _ if one.name in FIXED:
                continue
            case _, True, True, True:
                found[one.name] = ({key: EVIL for key in ("function", "module", "name", EVIL)},)
            case _, True, False, True:
                found[one.name] = {key: EVIL for key in (*KERNEL_KEYS.split(), EVIL)}
            case True, _, True, _:
                found[one.name] = (EVIL.encode() + b"\xff", EVIL.encode())
            case True, _, False, _:
                found[one.name] = EVIL.encode() + b"\xff"
            case _, True, True, _:
                found[one.name] = (EVIL,)
            case _, True, False, _:
                found[one.name] = EVIL
    return found


def any_json(crash: Crash) -> list[bytes]:
    """Make lines in which one value is of any kind of JSON."""
    document = json.loads(make_line(crash))
    others: list[Any] = [EVIL, [EVIL], {EVIL: EVIL}, 5, None, 1e308, True, [[[]]], -1, 1 << 70]
    return [json.dumps({**document, k: v}).encode() for k in document for v in others]


@pytest.mark.parametrize("kind", [Kind.PROCESS, Kind.KERNEL])
def test_hostile_text_in_any_field_is_shown_escaped_by_every_verb(
    fleet: FleetIndex, tmp_path: Path, kind: Kind
) -> None:
    values = hostile_values()
    assert {"hostname", "comm", "exe", "argv", "title", "unit", "frames", "kernel"} <= values.keys()
    lines = [make_line(replace(make_crash(1), kind=kind, **{k: v})) for k, v in values.items()]
    fleet.put(1, *lines, make_line(replace(make_crash(1), kind=kind, **values)))
    strange = any_json(make_crash(2))
    for start in range(0, len(strange), 250):
        fleet.put(2, *strange[start : start + 250])
    labels = json.dumps({f"label{number}": "x" for number in range(10_000)}).encode()
    fleet.put(3, make_line(make_crash(3)).replace(b'"labels":{}', b'"labels":' + labels))
    fleet.put(3, make_line(make_crash(3), labels={f"a{n}": "b" for n in range(LABELS_MAX)}))
    fleet.index()
    ((reasons,),) = fleet.ask("SELECT array_agg(DISTINCT reason) FROM quarantine")
    assert set(reasons) == {"malformed", "newer"}
    everything = [["list", "-n", "1000"], ["list", "-n", "1000", "--json"], ["top"], ["stats"]]
    everything += [["top", "--by", by] for by in ("build", "host", "version", "label:a0")]
    everything += [["top", "--new-since", text] for text in ("-1d", EVIL)]
    everything += [["report", "-o", str(tmp_path / "page.html")], ["list", EVIL], ["info", EVIL]]
    everything += [["list", "--host", EVIL], ["list", "--label", f"a={EVIL}"], ["want", EVIL]]
    rows = json.loads(crashctl(fleet, "list", "-n", "1000", "--json")[1])
    assert len(rows) > len(lines)
    everything += [
        [verb, *more, row["id"]] for row in rows for verb, *more in (["info", "-a"], ["want"])
    ]
    for words in everything:
        status, out, err = crashctl(fleet, *words)
        assert status in (0, 1), (words, err)
        assert not UNSEEN.search(out + err), words
    page = (tmp_path / "page.html").read_text()
    assert not UNSEEN.search(page) and "<script" not in page
    assert not UNSEEN.search(printed(lambda: main(["status", "--dsn", fleet.dsn])))


def printed(call: Callable[[], object]) -> str:
    """Return what a call prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        call()
    return out.getvalue()
