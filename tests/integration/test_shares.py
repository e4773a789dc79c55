"""What a capture is given of memory and disk, and what it leaves to other users'."""

from pathlib import Path

import pytest

from crashd.daemon.after.retention import LEAVE_SHARE, Allotment, Retention
from crashd.daemon.capture.pump import BASE_BYTES, StopError
from crashd.daemon.capture.sink import CoreSink
from crashd.daemon.intake.admission import Admission
from crashd.domain.crash.model import Disposition
from crashd.domain.keep.process import Policy
from crashd.domain.keep.site import Site
from crashd.domain.units import Amount
from crashd.store import entry as entries
from crashd.store.paths import Paths
from crashd.store.retention import Told, read_usage
from tests.builders.crashes import build_crash

MIB = 1 << 20


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    entries.prepare(found)
    return found


def question(uid: int, wanted: int) -> dict[str, object]:
    site = Site(uid, None, "/bin/x", "x", None, 11, None)
    return {"site": site.to_json(), "wanted": wanted}


def test_sec_81_buffer_that_one_user_takes_has_room_for_the_next(paths: Paths) -> None:
    users: list[int | None] = []

    def reserve(crash_id: str, wanted: int, user: int | None) -> Allotment:
        users.append(user)
        return Allotment(1, 2)

    admission = Admission(
        paths,
        lambda verdict: None,
        reserve=reserve,
        unreserve=lambda crash_id: None,
        user_of=lambda uid: uid % 1000,
    )
    admission.configure({}, (), Disposition.FULL, 64 * MIB)
    granted = {
        name: admission.decide(name, question(uid, 1 << 40))["buffer_bytes"]
        for name, uid in {"a": 1, "b": 1, "c": 5001, "d": 2, "e": 3}.items()
    }
    assert granted == {
        "a": 32 * MIB,
        "b": BASE_BYTES,
        "c": BASE_BYTES,
        "d": 16 * MIB,
        "e": 8 * MIB,
    }
    assert users == [1, 1, 1, 2, 3], "a subordinate uid is its user's"
    admission.ended("a")
    assert admission.decide("f", question(1, MIB))["buffer_bytes"] == BASE_BYTES
    assert admission.decide("g", question(1, 1 << 40))["buffer_bytes"] == 20 * MIB


def test_sec_81_what_is_lent_of_keep_free_leaves_some_to_the_next_user(paths: Paths) -> None:
    retention = Retention(paths, Told(lambda removed: None), lambda: None)
    total = read_usage(paths).total_bytes
    retention.configure(Policy(keep_free=Amount(size_bytes=total)))
    lent = [
        retention.reserve(f"{number}", 0, user).credit_bytes
        for number, user in enumerate((1, 1, 2, 3))
    ]
    assert lent == [total - (total >> shift) for shift in (1, 1, 2, 3)]
    for number in range(4):
        retention.unreserve(f"{number}")
    assert retention.reserve("9", 0, 3).credit_bytes == total - (total >> 1)


def test_sec_81_capture_leaves_of_the_disk_what_others_may_need(paths: Paths) -> None:
    retention = Retention(paths, Told(lambda removed: None), lambda: None)
    retention.configure(Policy(keep_free=Amount(size_bytes=0)))
    found, usage = retention.reserve("1", 8 * MIB, 1), read_usage(paths)
    assert found.credit_bytes == 0
    assert 0 < found.leave_bytes <= usage.total_bytes // LEAVE_SHARE
    crash = build_crash(1)
    with entries.create(paths, crash) as entry:
        limits = {"level": 1, "threads": 0, "keep_free_bytes": 0}
        with pytest.raises(StopError):
            CoreSink(entry, leave_bytes=1 << 60, wanted=None, **limits)
