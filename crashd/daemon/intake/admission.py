"""Decide what to keep of a crash and how much memory its capture may use. Workers ask; the decision
is made here, in the daemon's one loop.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from crashd.base.files import read_space
from crashd.daemon.after.retention import Allotment
from crashd.daemon.capture.pump import BASE_BYTES
from crashd.daemon.intake.job import SMALL_BYTES
from crashd.domain.crash.model import Disposition
from crashd.domain.keep.limiter import Limiter, Rate, Scope, Verdict, keys_of
from crashd.domain.keep.policy import Rule, most_of
from crashd.domain.keep.site import Site
from crashd.edge.capture.process import memory_available_bytes
from crashd.errors import reason_of
from crashd.store.paths import Paths
from crashd.store.statefile import read_state, write_state

log = logging.getLogger("crashd.admission")


SMALL_SHARE = 4
"""A quarter of the buffer is never given to large cores."""
EXPECTED_SHARE = 4
"""A core is expected to take a quarter of its size on disk; its spill leaves that much free."""
HEADROOM_BYTES = 1 << 30
HEADROOM_SHARE = 100
"""A spill leaves another hundredth of the disk free, at most HEADROOM_BYTES. Otherwise retention
would delete cores for the sake of a file that is gone in a minute.
"""


class Disk(Protocol):
    """Assigns each capture its part of the disk."""

    def reserve(self, crash_id: str, wanted: int, user: int | None) -> Allotment:
        """Return the part for a user's capture that may read `wanted` bytes."""

    def unreserve(self, crash_id: str) -> None:
        """Note that a capture ended."""


class Accounts(Protocol):
    """Maps uids to users."""

    def user_of(self, uid: int) -> int:
        """Return the user that a uid counts for."""


class LimitCounter(Protocol):
    """Counts crashes that the limiter reduces."""

    def limited(self, verdict: Verdict) -> None:
        """Count a verdict that keeps less than the rules allow."""


@dataclass(frozen=True, slots=True)
class _Granted:
    """The share of buffer and spill that one capture has."""

    user: int | None
    buffer_bytes: int
    spill_bytes: int
    is_small: bool


class Admission:
    """The rules, the limiter, and the resources that all captures share: buffer and spill space."""

    def __init__(self, paths: Paths, counter: LimitCounter, disk: Disk, accounts: Accounts) -> None:
        self._paths = paths
        self._counter = counter
        self._disk = disk
        self._accounts = accounts
        self._limiter = Limiter({})
        self._rules: Sequence[Rule] = ()
        self._default = Disposition.FULL
        self._buffer_bytes = 0
        self._spill_bytes = 0
        self._granted: dict[str, _Granted] = {}
        self._changed = False
        state = read_state(paths.limiter_state)
        if state is not None and not self._limiter.load_json(state):
            log.warning(
                "%s does not have the limiter's state, beginning without", paths.limiter_state
            )

    def configure(
        self,
        rates: Mapping[Scope, Rate],
        rules: Sequence[Rule],
        default: Disposition,
        buffer_bytes: int,
        spill_bytes: int,
    ) -> None:
        """Apply new settings; buffer and spill are totals for all captures together."""
        self._limiter.set_rates(rates)
        self._rules, self._default = rules, default
        self._buffer_bytes, self._spill_bytes = buffer_bytes, spill_bytes

    def decide(self, crash_id: str, question: Mapping[str, Any], *, live: bool) -> dict[str, Any]:
        """Return the answer to a worker: what to keep of the crash, why crashd does not keep more,
        and the resources of the capture.

        Only a `live` crash, whose process is held, gets a share of buffer and spill.
        """
        site = Site.from_json(question["site"])
        most, reason = most_of(site, self._rules, self._default)
        user = None if site.uid is None else self._accounts.user_of(site.uid)
        account = str(user) if site.account == str(site.uid) else site.account
        keys = keys_of(replace(site, uid=user, account=account))
        verdict = self._limiter.decide(keys, most, time.time_ns())
        self._changed = True
        if verdict.scope is not None:
            self._counter.limited(verdict)
        granted, disk, wanted = _Granted(user, 0, 0, True), Allotment(), question["wanted"]
        if verdict.disposition is Disposition.FULL:
            if live:
                granted = self._grant(crash_id, wanted, user)
            disk = self._disk.reserve(crash_id, wanted, user)
        total = read_space(self._paths.crashes).total_bytes
        return {
            "disposition": verdict.disposition,
            "reason": verdict.reason or (None if most is Disposition.FULL else reason),
            "buffer_bytes": max(BASE_BYTES, granted.buffer_bytes),
            "spill_bytes": granted.spill_bytes,
            "spill_leaves_bytes": wanted // EXPECTED_SHARE
            + min(HEADROOM_BYTES, total // HEADROOM_SHARE),
            "credit_bytes": disk.credit_bytes,
            "leave_bytes": disk.leave_bytes,
        }

    def refuses(self, uid: int) -> str | None:
        """Return why the core of a user's next crash would not be kept; None if it may be kept.

        The capture of such a crash does not even read the head. The crash counts as limited.
        """
        user = str(self._accounts.user_of(uid))
        reason = self._limiter.spent(Scope.UID, user, time.time_ns())
        if reason is not None:
            self._counter.limited(Verdict(Disposition.METADATA, Scope.UID, reason))
        return reason

    def _grant(self, crash_id: str, wanted: int, user: int | None) -> _Granted:
        """Return a capture's part of buffer and spill: of each at most what its user leaves to
        others, and of the buffer at most half of the available memory.

        A part of the wanted buffer is enough, because the rest of the core is spilled. A small core
        fits completely into the part that large cores never take, and needs no disk.
        """
        is_small = wanted <= SMALL_BYTES
        buffer = self._buffer_bytes if is_small else self._buffer_bytes // SMALL_SHARE * 3
        seen = [g for g in self._granted.values() if is_small or not g.is_small]
        size = min(
            wanted,
            _half_of_free(buffer, [(g.user, g.buffer_bytes) for g in seen], user),
            memory_available_bytes() // 2,
        )
        if size <= BASE_BYTES:
            size = 0  # every worker has BASE_BYTES anyway
        spilled = [(g.user, g.spill_bytes) for g in self._granted.values()]
        spill = min(wanted - size, _half_of_free(self._spill_bytes, spilled, user))
        granted = _Granted(user, size, spill, is_small)
        self._granted[crash_id] = granted
        return granted

    def ended(self, crash_id: str) -> None:
        """Take back the resources of a crash's capture."""
        self._granted.pop(crash_id, None)
        self._disk.unreserve(crash_id)

    def save(self) -> None:
        """Write the limiter's state if it changed; losing it only means limiting less."""
        if not self._changed:
            return
        self._changed = False
        try:
            write_state(self._paths.limiter_state, self._limiter.to_json())
        except OSError as e:
            log.error("cannot write %s: %s, ignoring", self._paths.limiter_state, reason_of(e))


def _half_of_free(total: int, given: list[tuple[int | None, int]], user: int | None) -> int:
    """Return how much of a shared total a user may take now, so that as much is left for others."""
    free = total - sum(size for _, size in given)
    own = sum(size for whose, size in given if whose == user)
    return max(0, (free - own) // 2)
