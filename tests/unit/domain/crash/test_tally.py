import json
from datetime import UTC, datetime
from typing import Any

import pytest

from crashd.domain.crash.tally import STEPS, parse_time_ns, plan_timeline, program, tally
from tests.unit.cli.rows import NGINX, row_of

S, DAY = 10**9, 86400 * 10**9
NOW = 1_795_410_000 * S


def row(age_s: float, **more: Any) -> dict[str, Any]:
    moment = datetime.fromtimestamp(NOW / S - age_s, UTC)
    return {**row_of(NGINX), "time": moment.isoformat().replace("+00:00", "Z"), **more}


@pytest.mark.parametrize(
    ("span_ns", "columns_max", "step_s", "columns"),
    [
        (DAY, 96, 900, 96),
        (DAY, 72, 1800, 48),
        (7 * DAY, 72, 3 * 3600, 56),
        (1, 72, 1, 1),
        (100 * S, 72, 2, 50),
        (10**30, 10, 3650 * 86400, 10),
    ],
)
def test_plan_timeline_chooses_the_shortest_step_that_fits(
    span_ns: int, columns_max: int, step_s: int, columns: int
) -> None:
    line = plan_timeline(NOW - span_ns, NOW, columns_max)
    assert (line.step_ns, len(line)) == (step_s * S, columns)
    assert line.step_ns in STEPS
    assert line.start_ns <= max(NOW - span_ns, line.start_ns)


def test_tally_counts_each_subject() -> None:
    rows = [
        row(10),
        row(20, unit=None, signal_name="SIGABRT", exe=None, comm="web"),
        row(30, unit=None, container_id="a" * 64),
        row(40, kind="kernel", kernel={"release": "6.1", "panic_kind": "BUG"}, unit=None),
        row(50, kind="kernel", kernel=None, unit=None, signal_name=None, capture=None),
    ]
    found = tally(rows, plan_timeline(NOW - DAY, NOW, 96))
    assert found.total == 5
    assert found.ranked("kinds") == [("process", 3), ("kernel", 2)]
    assert found.ranked("signals") == [("SIGSEGV", 2), ("BUG", 1), ("SIGABRT", 1), ("kernel", 1)]
    assert found.ranked("units") == [
        ("(no unit)", 3),
        ("container aaaaaaaaaaaa", 1),
        ("nginx.service", 1),
    ]
    assert found.ranked("programs")[-1] == ("web", 1)
    assert found.ranked("dispositions") == [("full", 4), ("(unknown)", 1)]
    assert found.timeline.counts["process"][-1] == 3
    assert found.timeline.counts["kernel"][-1] == 2
    assert found.timeline.totals()[:-1] == [0] * 95


def test_tally_leaves_times_out_that_are_none_or_elsewhere() -> None:
    rows = [row(0, time="nonsense"), row(0, time=None), row(-10), row(2 * 86400)]
    found = tally(rows, plan_timeline(NOW - DAY, NOW, 96))
    assert (found.total, sum(found.timeline.totals())) == (4, 0)


def test_tally_groups_by_signature_and_without_one_by_title() -> None:
    rows = [
        row(50, signature="a", title="old"),
        row(10, signature="a", title="new"),
        row(30, signature="a", title="middle"),
        row(20, signature=None, title="x"),
        row(25, signature=None, title="x"),
        row(5, signature=None, title="y"),
    ]
    top = tally(rows, plan_timeline(NOW - DAY, NOW, 96)).top()
    assert [(g.signature, g.count, g.newest["title"]) for g in top] == [
        ("a", 3, "new"),
        (None, 2, "x"),
        (None, 1, "y"),
    ]
    assert (top[0].first, top[0].last) == (rows[0]["time"], rows[1]["time"])


def test_to_json_has_every_subject_and_column() -> None:
    found = tally([row(10)], plan_timeline(NOW - 3600 * S, NOW, 10)).to_json()
    assert json.loads(json.dumps(found)) == found
    assert (found["total"], found["bucket_seconds"], len(found["timeline"])) == (1, 600, 6)
    assert found["timeline"][-1] == {
        "time": "2026-11-23T04:50:00.000000Z",
        "process": 1,
        "kernel": 0,
    }
    assert found["units"] == [{"name": "nginx.service", "count": 1}]


def test_program_of_a_kernel_is_its_release() -> None:
    assert program({"kind": "kernel", "kernel": {"release": "6.1"}}) == "kernel 6.1"
    assert program({"kind": "kernel"}) == "kernel"
    assert program({"comm": "x", "exe": "/bin/x"}) == "/bin/x"


@pytest.mark.parametrize("text", [None, "", "x", 5, "9999-99-99T00:00:00Z"])
def test_parse_time_ns_of_no_time_is_none(text: object) -> None:
    assert parse_time_ns(text) is None
