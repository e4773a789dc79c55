"""Whose analysis comes next: the real queue and its thread, on crashes that are gone."""

import logging
import threading
from pathlib import Path

import pytest

from crashd.daemon.after.queue import QUEUE_MAX, AnalysisQueue, QueueSettings
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash
from tests.running import wait_until


@pytest.fixture
def captures() -> threading.Event:
    """Whether captures have ended: analyses wait for them."""
    return threading.Event()


@pytest.fixture
def analyses(tmp_path: Path, captures: threading.Event) -> AnalysisQueue:
    return AnalysisQueue(
        Paths(tmp_path),
        busy=lambda: not captures.is_set(),
        changed=lambda _: None,
        ended=lambda *_: None,
        first=lambda _: None,
    )


def test_sec_84_analyses_of_one_user_go_in_turn_with_those_of_others(
    analyses: AnalysisQueue, captures: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [build_crash(number).id for number in range(40)]
    names = dict(zip(ids, [*(f"a{n}" for n in range(37)), "b", "c", "asked"], strict=True))
    analyses.configure(QueueSettings(enabled=True, workers=1))
    with caplog.at_level(logging.INFO, "crashd.analysis"):
        for crash_id in ids[:37]:
            assert analyses.add(crash_id, "1000")
        wait_until(lambda: analyses.waiting == 36, 10, "the first one waits for captures")
        assert analyses.add(ids[37], "1001")
        assert analyses.add(ids[38], "0")
        assert analyses.add_first(ids[39])
        captures.set()
        wait_until(lambda: not analyses.ids(), 30, "all are done")
    analyses.stop()
    order = [names[str(r.args[0])] for r in caplog.records if isinstance(r.args, tuple) and r.args]
    assert order[:5] == ["a0", "asked", "b", "c", "a1"]
    assert len(order) == 40


def test_sec_84_analyses_that_one_user_queues_take_nobody_elses_place(
    analyses: AnalysisQueue, captures: threading.Event
) -> None:
    analyses.configure(QueueSettings(enabled=True, workers=1))
    taken = sum(analyses.add(build_crash(n).id, "1000") for n in range(QUEUE_MAX + 50))
    assert taken <= QUEUE_MAX + 1
    assert analyses.overflowed, "they are looked for later"
    other = build_crash(QUEUE_MAX + 50).id
    assert analyses.add(other, "1001")
    assert other in analyses.ids()
    assert analyses.waiting == QUEUE_MAX
    analyses.stop()
    captures.set()


def test_an_analysis_that_is_asked_for_begins_after_the_question(
    analyses: AnalysisQueue, captures: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [build_crash(2000 + number).id for number in range(4)]
    analyses.configure(QueueSettings(enabled=True, workers=1))
    with caplog.at_level(logging.INFO, "crashd.analysis"):
        for crash_id in ids:
            assert analyses.add(crash_id, "1000")
        wait_until(lambda: analyses.waiting == 3, 10, "the first one runs")
        assert analyses.add_first(ids[0]), "its result may be written already"
        assert analyses.add_first(ids[3])
        assert analyses.add_first(ids[3])
        captures.set()
        wait_until(lambda: not analyses.ids(), 30, "all are done")
    analyses.stop()
    told = [str(r.args[0]) for r in caplog.records if isinstance(r.args, tuple) and r.args]
    order = [crash_id for crash_id in told if crash_id in ids]  # not an earlier test's
    assert order == [ids[0], ids[0], ids[3], ids[1], ids[2]], "once each after the question"
