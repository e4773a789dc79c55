"""What is kept of a crash, and how much memory its capture may use: asked by the workers, decided
here, in the daemon's one loop.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from crashd.daemon.after.retention import Allotment
from crashd.daemon.capture.pump import BASE_BYTES
from crashd.domain.crash.model import Disposition
from crashd.domain.keep.limiter import Limiter, Rate, Scope, Verdict, keys_of
from crashd.domain.keep.policy import Rule, most_of
from crashd.domain.keep.site import Site
from crashd.edge.capture.process import memory_available_bytes
from crashd.errors import reason_of
from crashd.store.paths import Paths
from crashd.store.statefile import read_state, write_state

log = logging.getLogger("crashd.admission")


class Admission:
    """The rules, the limiter and the buffer that all captures share."""

    def __init__(
        self,
        paths: Paths,
        limited: Callable[[Verdict], None],
        *,
        reserve: Callable[[str, int, int | None], Allotment],
        unreserve: Callable[[str], None],
        user_of: Callable[[int], int],
    ) -> None:
        """`limited` is told of each verdict of the limiter that keeps less than the rules allow,
        `reserve` of each capture, what it may read and whose it is: it gives it its part of the
        disk; `unreserve` that it ended. `user_of` tells whom a uid counts for.
        """
        self._user_of = user_of
        self._reserve = reserve
        self._unreserve = unreserve
        self._paths = paths
        self._limited = limited
        self._limiter = Limiter({})
        self._rules: Sequence[Rule] = ()
        self._default = Disposition.FULL
        self._buffer_bytes = 0
        self._granted: dict[str, tuple[int | None, int]] = {}
        """Of the buffer: to whom, and how much."""
        self._changed = False
        state = read_state(paths.limiter_state)
        if state is not None and not self._limiter.load_json(state):
            log.warning("%s is no limiter's state, beginning anew", paths.limiter_state)

    def configure(
        self,
        rates: Mapping[Scope, Rate],
        rules: Sequence[Rule],
        default: Disposition,
        buffer_bytes: int,
    ) -> None:
        """Take new settings."""
        self._limiter.set_rates(rates)
        self._rules, self._default, self._buffer_bytes = rules, default, buffer_bytes

    def decide(self, crash_id: str, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a worker: what to keep of the crash, why not more, and how large a buffer."""
        site = Site.from_json(question["site"])
        most, reason = most_of(site, self._rules, self._default)
        user = None if site.uid is None else self._user_of(site.uid)
        account = str(user) if site.account == str(site.uid) else site.account
        keys = keys_of(replace(site, uid=user, account=account))
        verdict = self._limiter.decide(keys, most, time.time_ns())
        self._changed = True
        if verdict.scope is not None:
            self._limited(verdict)
        buffer_bytes, disk = 0, Allotment()
        if verdict.disposition is Disposition.FULL:
            buffer_bytes = self._grant(crash_id, question["wanted"], user)
            disk = self._reserve(crash_id, question["wanted"], user)
        return {
            "disposition": verdict.disposition,
            "reason": verdict.reason or (None if most is Disposition.FULL else reason),
            "buffer_bytes": max(BASE_BYTES, buffer_bytes),
            "credit_bytes": disk.credit_bytes,
            "leave_bytes": disk.leave_bytes,
        }

    def refuses(self, uid: int) -> str | None:
        """Tell why no core of a user's next crash would be kept; None when one may be.

        Such a crash is not even asked for its head; it counts as limited.
        """
        reason = self._limiter.spent(Scope.UID, str(self._user_of(uid)), time.time_ns())
        if reason is not None:
            self._limited(Verdict(Disposition.METADATA, Scope.UID, reason))
        return reason

    def _grant(self, crash_id: str, wanted: int, user: int | None) -> int:
        """Give of the shared buffer: no more than the user leaves to others, nor than half of the
        memory that is available.
        """
        free = self._buffer_bytes - sum(size for _, size in self._granted.values())
        own = sum(size for whose, size in self._granted.values() if whose == user)
        granted = max(0, min(wanted, (free - own) // 2, memory_available_bytes() // 2))
        if granted > BASE_BYTES:
            self._granted[crash_id] = (user, granted)
        return granted

    def ended(self, crash_id: str) -> None:
        """Take back what the capture of a crash had of the buffer."""
        self._granted.pop(crash_id, None)
        self._unreserve(crash_id)

    def save(self) -> None:
        """Write the limiter's state where it changed; a state that is lost only limits less."""
        if not self._changed:
            return
        self._changed = False
        try:
            write_state(self._paths.limiter_state, self._limiter.to_json())
        except OSError as e:
            log.error("cannot write %s: %s, ignoring", self._paths.limiter_state, reason_of(e))
