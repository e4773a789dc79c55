from typing import Any

import pytest

from crashd.cli.show.top import render_top
from tests.unit.cli.rows import TIME_NS, row_of


def signature(**changes: Any) -> dict[str, Any]:
    title = "SIGSEGV in nginx, parse(): NULL pointer read"
    row = {"count": 3, "first": "2026-11-20T05:02:09.0Z", "last": "2026-11-23T05:02:09.0Z"}
    return {**row_of(title=title), **row, "signature": "p2-0123456789abcdef", **changes}


def lines(width: int | None) -> list[str]:
    now_ns = TIME_NS + 60 * 10**9
    return list(render_top([signature()], width, legend=True, color=False, now_ns=now_ns))


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_render_top_shows_the_newest_id_and_the_cause(width: int) -> None:
    legend, line = lines(width)
    assert line[legend.index("ID") :].startswith(row_of()["id"][-8:])
    assert line[legend.index("TITLE") :].startswith("NULL pointer read")
    assert max(map(len, lines(width))) <= width


def test_render_top_long_names_leave_room_for_the_cause() -> None:
    title = "SIGABRT in background-work, f(): double free"
    exe = "/opt/a/background-worker-daemon"
    rows = [signature(exe=exe, comm="background-work", title=title)]
    for width, start in ((60, "ri0gwwaa"), (80, "SIGSEGV background-w… ")):
        _, line = render_top(rows, width, legend=True, color=False, now_ns=TIME_NS)
        assert start in line
        assert line.endswith("double free, in f()")


def test_render_top_is_brief_on_a_narrow_terminal() -> None:
    assert lines(80)[1].split()[:3] == ["3", "1min", "ago"]


def test_render_top_shows_signatures_where_there_is_room() -> None:
    assert "p2-0123456789abcdef" in lines(None)[1]
    assert "p2-0123456789abcdef" in lines(160)[1]
    assert "SIGNATURE" not in lines(120)[0]


def test_render_top_of_nothing_is_nothing() -> None:
    assert list(render_top([], 80, legend=True, color=False, now_ns=0)) == []
