"""Whose analysis comes next: the real queue and its thread, on crashes that are gone."""

import logging
from pathlib import Path

import pytest

from crashd.daemon.after.backlog import QUEUE_MAX, Backlog
from crashd.daemon.after.captures import Captures
from crashd.daemon.after.faults import FaultLines
from crashd.daemon.after.notices import Notices
from crashd.daemon.after.queue import AnalysisQueue, QueueSettings
from crashd.daemon.after.retention import Retention
from crashd.daemon.indexer import Indexer
from crashd.edge.web.exporter import Exporter
from crashd.store.paths import Paths
from crashd.store.retention import Told
from crashd.store.users import Users
from tests.builders.crashes import build_crash
from tests.running import wait_until


@pytest.fixture
def captures() -> Captures:
    """Captures that are under way until a test ends them: analyses wait for them."""
    found = Captures()
    found.under_way = 1
    return found


@pytest.fixture
def backlog(tmp_path: Path) -> Backlog:
    return Backlog(Indexer(Paths(tmp_path), Exporter("0")))


@pytest.fixture
def analyses(tmp_path: Path, captures: Captures, backlog: Backlog) -> AnalysisQueue:
    paths, exporter, users = Paths(tmp_path), Exporter("0"), Users()
    return AnalysisQueue(
        paths,
        captures,
        Indexer(paths, exporter),
        exporter,
        Notices(paths, exporter, users),
        Retention(paths, Told(lambda _: None), lambda: None, backlog),
        backlog,
        users,
        FaultLines(),
    )


def test_sec_84_analyses_of_one_user_go_in_turn_with_those_of_others(
    analyses: AnalysisQueue, captures: Captures, backlog: Backlog, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [build_crash(number).id for number in range(40)]
    names = dict(zip(ids, [*(f"a{n}" for n in range(37)), "b", "c", "asked"], strict=True))
    analyses.configure(QueueSettings(enabled=True, workers=1))
    with caplog.at_level(logging.INFO, "crashd.analysis"):
        for crash_id in ids[:37]:
            assert backlog.put("1000", crash_id)
        wait_until(lambda: len(backlog) == 36, 30, "the first one waits for captures")
        assert backlog.put("1001", ids[37])
        assert backlog.put("0", ids[38])
        assert backlog.put_first(ids[39])
        captures.under_way = 0
        wait_until(lambda: not backlog.ids(), 30, "all are done")
    analyses.stop()
    order = [names[str(r.args[0])] for r in caplog.records if isinstance(r.args, tuple) and r.args]
    assert order[:5] == ["a0", "asked", "b", "c", "a1"]
    assert len(order) == 40


def test_sec_84_analyses_that_one_user_queues_take_nobody_elses_place(
    analyses: AnalysisQueue, captures: Captures, backlog: Backlog
) -> None:
    analyses.configure(QueueSettings(enabled=True, workers=1))
    taken = sum(backlog.put("1000", build_crash(n).id) for n in range(QUEUE_MAX + 50))
    assert taken <= QUEUE_MAX + 1
    assert backlog.overflowed, "they are looked for later"
    other = build_crash(QUEUE_MAX + 50).id
    assert backlog.put("1001", other)
    assert other in backlog.ids()
    assert len(backlog) == QUEUE_MAX
    analyses.stop()
    captures.under_way = 0


def test_crashes_at_a_new_site_come_first_and_the_others_share_a_worker(
    analyses: AnalysisQueue, captures: Captures, backlog: Backlog
) -> None:
    ids = [build_crash(3000 + number).id for number in range(12)]
    backlog.open_for(1)
    for crash_id in ids[:6]:
        assert backlog.put("1000", crash_id, "site a")
    assert backlog.put("1001", ids[6], "site a")
    assert backlog.put("1000", ids[7], "site b")
    assert backlog.put("1000", ids[8])
    taken = [backlog.take(0, 4) for _ in range(5)]
    assert taken == [
        ("1000", [ids[0], *ids[1:4]]),
        ("1001", [ids[6]]),
        ("1000", [ids[7]]),
        ("1000", [ids[8]]),
        ("1000", [*ids[4:6]]),
    ]
    backlog.done("1000", [ids[0], *ids[1:4]], 1.0)
    assert backlog.put("1000", ids[1], late=True), "it has to be analysed alone"
    assert backlog.put("1000", ids[9], "site a")
    assert backlog.put("1000", ids[10], "site c")
    assert [backlog.take(0, 4) for _ in range(3)] == [
        ("1000", [ids[10]]),
        ("1000", [ids[1]]),
        ("1000", [ids[9]]),
    ]


def test_an_analysis_that_is_asked_for_begins_after_the_question(
    analyses: AnalysisQueue, captures: Captures, backlog: Backlog, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [build_crash(2000 + number).id for number in range(4)]
    analyses.configure(QueueSettings(enabled=True, workers=1))
    with caplog.at_level(logging.INFO, "crashd.analysis"):
        for crash_id in ids:
            assert backlog.put("1000", crash_id)
        wait_until(lambda: len(backlog) == 3, 30, "the first one runs")
        assert backlog.put_first(ids[0]), "its result may be written already"
        assert backlog.put_first(ids[3])
        assert backlog.put_first(ids[3])
        captures.under_way = 0
        wait_until(lambda: not backlog.ids(), 30, "all are done")
    analyses.stop()
    told = [str(r.args[0]) for r in caplog.records if isinstance(r.args, tuple) and r.args]
    order = [crash_id for crash_id in told if crash_id in ids]  # not an earlier test's
    assert order == [ids[0], ids[0], ids[3], ids[1], ids[2]], "once each after the question"
