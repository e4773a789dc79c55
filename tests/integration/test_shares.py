"""What a capture is given of memory and disk, and what it leaves to other users'."""

from pathlib import Path

import pytest

from crashd.daemon.after.retention import LEAVE_SHARE, Allotment, Retention
from crashd.daemon.capture.pump import BASE_BYTES, StopError
from crashd.daemon.capture.sink import CoreSink
from crashd.daemon.intake.admission import Admission
from crashd.domain.crash.model import Disposition
from crashd.domain.keep.limiter import Verdict
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
    host = Host()
    admission = admit(paths, host, buffer=64 * MIB, spill=0)
    granted = {
        name: admission.decide(name, question(uid, 1 << 40), live=True)["buffer_bytes"]
        for name, uid in {"a": 1, "b": 1, "c": 5001, "d": 2, "e": 3}.items()
    }
    assert granted == {
        "a": 24 * MIB,
        "b": BASE_BYTES,
        "c": BASE_BYTES,
        "d": 12 * MIB,
        "e": 6 * MIB,
    }
    assert host.users == [1, 1, 1, 2, 3], "a subordinate uid is its user's"
    admission.ended("a")
    again = admission.decide("f", question(1, 1 << 40), live=True)
    assert again["buffer_bytes"] == 15 * MIB, "half of what is left of three quarters"
    small = admission.decide("g", question(9, 8 * MIB), live=True)
    assert small["buffer_bytes"] == 8 * MIB, "the last quarter is that of small cores"
    assert admission.decide("h", question(4, 1 << 40), live=False)["buffer_bytes"] == BASE_BYTES


class Host:
    """What admission asks of the rest of the daemon."""

    def __init__(self) -> None:
        self.users: list[int | None] = []

    def reserve(self, crash_id: str, wanted: int, user: int | None) -> Allotment:
        self.users.append(user)
        return Allotment(1, 2)

    def unreserve(self, crash_id: str) -> None:
        pass

    def limited(self, verdict: Verdict) -> None:
        pass

    def user_of(self, uid: int) -> int:
        return uid % 1000


def admit(paths: Paths, host: Host, *, buffer: int, spill: int) -> Admission:
    admission = Admission(paths, host, host, host)
    admission.configure({}, (), Disposition.FULL, buffer, spill)
    return admission


def test_spill_that_one_user_takes_has_room_for_the_next(paths: Paths) -> None:
    admission = admit(paths, Host(), buffer=64 * MIB, spill=1000 * MIB)
    first = admission.decide("a", question(1, 1 << 40), live=True)
    assert (first["buffer_bytes"], first["spill_bytes"]) == (24 * MIB, 500 * MIB)
    assert admission.decide("b", question(1, 1 << 40), live=True)["spill_bytes"] == 0
    assert admission.decide("c", question(2, 1 << 40), live=True)["spill_bytes"] == 250 * MIB
    small = admission.decide("d", question(3, 6 * MIB), live=True)
    assert (small["buffer_bytes"], small["spill_bytes"]) == (6 * MIB, 0), "it needs none"
    assert admission.decide("e", question(4, 1 << 40), live=False)["spill_bytes"] == 0
    admission.ended("a")
    assert admission.decide("f", question(1, 1 << 40), live=True)["spill_bytes"] == 375 * MIB


def test_spill_leaves_what_is_to_stay_free_to_the_core_that_comes_of_it(paths: Paths) -> None:
    admission = admit(paths, Host(), buffer=64 * MIB, spill=1000 * MIB)
    small = admission.decide("a", question(1, 100 * MIB), live=True)["spill_leaves_bytes"]
    large = admission.decide("b", question(2, 500 * MIB), live=True)["spill_leaves_bytes"]
    assert large - small == 100 * MIB, "a quarter of what is to be read"


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
