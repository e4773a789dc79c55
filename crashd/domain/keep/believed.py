"""Which times of crashes to believe, where the wall clock of a host may be anything.

A crash's time is believed if it is not before EARLIEST_NS, not after now, and not more than SKEW_NS
before one that is believed of a crash before it. Any other has the time of the next crash that is
believed (it happened before that one), or now. So a crash stamped right never looks too old, nor
does one stamped too late; one stamped too early does so only if that contradicts no crash before
it, or contradicts it by less than SKEW_NS.
"""

from collections.abc import Sequence
from typing import Final

EARLIEST_NS: Final = 1_767_225_600 * 10**9
"""2026-01-01: crashd is younger; hosts without a clock of their own start in 1970."""

SKEW_NS: Final = 3600 * 10**9
"""Crashes reach the index in another order than they happened, by as much without any doubt."""


def believe(
    stamps_ns: Sequence[int | None], now_ns: int | None
) -> tuple[list[int], list[int | None]]:
    """Return when each crash happened, or later, and which crash before it contradicts its stamp.

    Args:
        stamps_ns: what the wall clock said, in the order of the crashes; None: not known any more.
        now_ns: a time that is surely not ahead of the true one; None where there is none, and
            nothing is contradicted and everything is of time 0.

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
