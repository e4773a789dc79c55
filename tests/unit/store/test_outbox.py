"""The outbox: nothing twice, nothing lost, nothing without bounds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.errors import UnavailableError
from crashd.store import outbox as module
from crashd.store.changes import Change, Gone
from crashd.store.outbox import (
    Batch,
    CorePart,
    Made,
    Outbox,
    Sent,
    WaitingCore,
    open_outbox,
)

NS = 10**9


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path / "outbox.sqlite")
    yield opened
    opened.close()


def take(outbox: Outbox, *ids: str, gone: Gone = Gone.NO, now_ns: int = NS) -> int:
    return outbox.take([Change(n, one, gone) for n, one in enumerate(ids)], now_ns)


def batch(sequence: int = 7, lines: int = 2) -> Batch:
    return Batch(sequence, "key", 5 * NS, lines, NS, b"body")


def test_crash_that_waits_keeps_its_place_and_its_time(outbox: Outbox) -> None:
    take(outbox, "a", "b", now_ns=NS)
    take(outbox, "a", now_ns=9 * NS)
    assert [(one.id, one.since_ns) for one in outbox.pending(10)] == [("a", NS), ("b", NS)]
    assert outbox.waiting() == (2, NS)


def test_deletion_outlasts_a_later_change(outbox: Outbox) -> None:
    take(outbox, "a", gone=Gone.DELETED)
    take(outbox, "a", gone=Gone.NO)
    assert [one.gone for one in outbox.pending(10)] == [Gone.DELETED]


def test_full_outbox_drops_the_oldest_and_counts(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PENDING_MAX", 3)
    assert take(outbox, "a", "b") == 0
    assert take(outbox, "c", "d", "e") == 2
    assert [one.id for one in outbox.pending(10)] == ["c", "d", "e"]


def test_put_batch_is_all_or_nothing(outbox: Outbox) -> None:
    take(outbox, "a", "b")
    done = outbox.pending(10)
    outbox.put_batch(batch(), [Made("a", Sent(3, b"d", CorePart.OPEN))], done, [])
    with pytest.raises(UnavailableError):  # the same number again
        take(outbox, "c")
        outbox.put_batch(batch(), [Made("c", Sent(4, b"d", CorePart.OPEN))], outbox.pending(10), [])
    assert outbox.sent("c") is None
    assert [one.id for one in outbox.pending(10)] == ["c"]
    assert outbox.sent("a") == Sent(3, b"d", CorePart.OPEN)
    assert outbox.oldest_batch() == batch()
    assert outbox.waiting() == (3, NS)


def test_sequence_grows_whatever_the_clock_does(outbox: Outbox) -> None:
    assert outbox.next_sequence(50_000) == 50
    outbox.put_batch(batch(50), [], [], [])
    assert outbox.next_sequence(10_000) == 51
    assert outbox.next_sequence(90_000) == 90


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    first = Outbox(path)
    take(first, "a", "b")
    first.put_batch(batch(), [], first.pending(1), [(WaitingCore("a", NS, "k", None), "s")])
    first.lost({"retention": 2})
    first.remember("etag", "x")
    first.close()
    again, aside = open_outbox(path)
    assert aside is None
    assert [one.id for one in again.pending(10)] == ["b"]
    assert again.oldest_batch() == batch()
    assert again.oldest_core() == WaitingCore("a", NS, "k", None)
    assert again.cores_of("s") == 1
    assert again.lost({"retention": 1}) == {"retention": 3}
    assert again.recall("etag") == "x"
    again.close()


@pytest.mark.parametrize("content", [b"no database " * 1000, b"SQLite format 3\0" + b"x" * 9000])
def test_damaged_outbox_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(content)
    made, aside = open_outbox(path)
    assert aside is not None and (tmp_path / aside).read_bytes() == content
    assert made.waiting() == (0, None)
    made.close()


def test_outbox_of_a_newer_crashd_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    first = Outbox(path)
    first._db.execute("PRAGMA user_version = 99")
    first.close()
    made, aside = open_outbox(path)
    assert aside is not None
    made.close()


def test_lost_core_makes_its_crash_wait_again(outbox: Outbox) -> None:
    core = WaitingCore("a", NS, "k", None)
    outbox.put_batch(None, [Made("a", Sent(3, b"d", CorePart.SENT))], [], [(core, None)])
    outbox.core_done("a", lost=True, now_ns=NS)
    assert outbox.cores_waiting() == 0
    sent = outbox.sent("a")
    assert sent is not None and sent.core is CorePart.LOST
    assert [one.id for one in outbox.pending(10)] == ["a"]


def test_core_put_behind_the_others_comes_last(outbox: Outbox) -> None:
    cores = [(WaitingCore(one, NS, one, None), None) for one in ("a", "b")]
    outbox.put_batch(None, [], [], cores)
    outbox.core_later("a")
    first = outbox.oldest_core()
    assert first is not None and first.id == "b" and outbox.cores_waiting() == 2


def test_age_out_notes_only_crashes_that_nobody_saw_go(outbox: Outbox) -> None:
    made = [Made(one, Sent(1, b"", CorePart.OPEN)) for one in ("a", "b")]
    outbox.put_batch(None, made, [], [])
    outbox.age_out({"b", "c"}, NS)
    assert [(one.id, one.gone) for one in outbox.pending(10)] == [("a", Gone.AGED)]


def test_renamed_batch_is_the_same_by_another_name(outbox: Outbox) -> None:
    outbox.put_batch(batch(7), [], [], [])
    outbox.rename_batch(batch(7), 9, "later", 8 * NS)
    assert outbox.oldest_batch() == Batch(9, "later", 8 * NS, 2, NS, b"body")
    outbox.batch_stored(9)
    assert outbox.batches() == 0
