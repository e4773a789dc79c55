"""Whether the clock can be believed."""

import pytest

from crashd.edge.host import clock


def test_read_synchronized_asks_without_changing_anything() -> None:
    assert clock.read_synchronized() in (True, False, None)


@pytest.mark.parametrize("synchronized", [True, False, None])
def test_believed_now_is_none_unless_synchronized(
    monkeypatch: pytest.MonkeyPatch, synchronized: bool | None
) -> None:
    monkeypatch.setattr(clock, "read_synchronized", lambda: synchronized)
    assert (clock.believed_now_ns() is not None) is bool(synchronized)
