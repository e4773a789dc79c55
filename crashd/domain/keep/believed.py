"""Decides which times of crashes to believe, because a host's wall clock may be wrong.

A crash's time is believed if it is not before EARLIEST_NS, not after now, and not more than SKEW_NS
before the believed time of an earlier crash. Any other crash counts as happening at the time of the
next believed crash (it did happen before that one), or now. So a crash with a correct stamp, or one
too late, never looks too old. A crash with a stamp too early looks too old only if the stamp
contradicts no earlier crash, or contradicts it by less than SKEW_NS.
"""

from collections.abc import Sequence
from typing import Final

EARLIEST_NS: Final = 1_767_225_600 * 10**9
"""2026-01-01: crashd is newer than this; hosts without a battery-backed clock start in 1970."""

SKEW_NS: Final = 3600 * 10**9
"""The order in the index may differ by this much from the order of the crashes."""


def believe(
    stamps_ns: Sequence[int | None], now_ns: int | None
) -> tuple[list[int], list[int | None]]:
    """Return a time not before each crash, and which earlier crash contradicts its stamp.

    Args:
        stamps_ns: the wall clock at each crash, in order; None if it is no longer known. now_ns: a
        time that is certainly not ahead of the true time. None if there is none; then no
            stamp is contradicted, and every time is 0.
    """
    if now_ns is None:
        return [0] * len(stamps_ns), [None] * len(stamps_ns)
    times: list[int | None] = []
    contradicted: list[int | None] = [None] * len(stamps_ns)
    latest_ns, latest = EARLIEST_NS, None
    for i, time_ns in enumerate(stamps_ns):
        if time_ns is None or not EARLIEST_NS <= time_ns <= now_ns:
            times.append(None)
        elif time_ns < latest_ns - SKEW_NS:
            times.append(None)
            contradicted[i] = latest
        else:
            times.append(time_ns)
            if time_ns > latest_ns:
                latest_ns, latest = time_ns, i
    following_ns = now_ns
    believed = []
    for own_ns in reversed(times):
        following_ns = following_ns if own_ns is None else own_ns
        believed.append(following_ns)
    return believed[::-1], contradicted
