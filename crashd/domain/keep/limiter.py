"""The crash-loop limiter: how much of a crash is worth keeping when the same thing crashes again
and again.

A token bucket for each crash site, unit and user, each for full and for mini cores: the first
`full` crashes of a scope are kept whole, then `mini` as mini cores, all others are only counted;
after `per` without a crash it begins again. A crash needs a token of every scope that it has. Every
key begins with the user id, so that what one user's programs do costs no other user's crash
anything; and names the container, so that none costs the host's crashes anything. What can be made
without end makes no more room without end: a user's own containers count as the user, and those of
root have one bucket more for all of a uid.

Pure: the clock is passed in, the state goes out and comes in as JSON.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from crashd.domain.crash.model import Crash, Disposition
from crashd.domain.keep.site import Site
from crashd.domain.units import format_duration

BUCKETS_MAX: Final = 4096
"""Of each scope; the one that was used least recently goes, and begins again when it comes back."""
CONTAINERS_SHARE: Final = 4
"""How much more than one user all containers with one uid in them may have kept."""
_KEY_MAX = 400
_REASON: Final = "limiter."


class Scope(StrEnum):
    """What crashes are counted by."""

    SITE = "site"
    """User, executable and build-id, signal, module and offset of the program counter."""
    UNIT = "unit"
    UID = "uid"
    CONTAINERS = "containers"
    """All crashes of a uid in containers that root made."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many crashes of one scope are kept, and in what time."""

    full: int
    mini: int
    per_ns: int


def rates_of(site: Rate, unit: Rate, uid: Rate) -> dict[Scope, Rate]:
    """Build the rates of all scopes from those that are configured."""
    containers = Rate(CONTAINERS_SHARE * uid.full, CONTAINERS_SHARE * uid.mini, uid.per_ns)
    return {Scope.SITE: site, Scope.UNIT: unit, Scope.UID: uid, Scope.CONTAINERS: containers}


class Verdict(NamedTuple):
    """What may be kept of a crash; which scope forbids more, and why in words."""

    disposition: Disposition
    scope: Scope | None = None
    reason: str | None = None


@dataclass(slots=True)
class _Bucket:
    full: float
    mini: float
    time_ns: int


def is_only_counted(crash: Crash) -> bool:
    """Return whether the limiter kept nothing of a crash but its record."""
    reason = crash.capture.reason or ""
    return crash.capture.disposition is Disposition.METADATA and reason.startswith(_REASON)


def keys_of(site: Site) -> dict[Scope, str]:
    """Name the buckets that a crash is counted in."""
    if site.uid is None:
        return {}
    digest = hashlib.sha256()
    for text in (site.exe or site.comm, site.build_id, str(site.signal), site.location):
        part = (text or "").encode("utf-8", "surrogateescape")
        digest.update(len(part).to_bytes(4, "big") + part)
    user = str(site.uid)
    where = user if site.place is None else f"{user}@{site.place}"
    keys = {Scope.SITE: f"{where}/{digest.hexdigest()[:24]}", Scope.UID: site.account or user}
    if site.unit is not None:
        keys[Scope.UNIT] = f"{where}/{site.unit}"[:_KEY_MAX]
    if keys[Scope.UID] != user:
        keys[Scope.CONTAINERS] = user
    return keys


class Limiter:
    """The buckets; times are CLOCK_REALTIME ns, and a clock that jumps back refills nothing."""

    def __init__(self, rates: Mapping[Scope, Rate]) -> None:
        self._rates = dict(rates)
        self._buckets: dict[Scope, dict[str, _Bucket]] = {scope: {} for scope in Scope}

    def set_rates(self, rates: Mapping[Scope, Rate]) -> None:
        """Take new rates; what was used so far stays used, as far as they have room for it."""
        self._rates = dict(rates)

    def decide(self, keys: Mapping[Scope, str], most: Disposition, now_ns: int) -> Verdict:
        """Decide for a crash of which `most` is to be kept, and count it."""
        if most is Disposition.METADATA:
            return Verdict(most)
        found = [
            (scope, self._bucket(scope, key, now_ns))
            for scope, key in keys.items()
            if scope in self._rates
        ]
        short = next((scope for scope, bucket in found if bucket.full < 1), None)
        if most is Disposition.FULL and short is None:
            for _, bucket in found:
                bucket.full -= 1
            return Verdict(Disposition.FULL)
        spent = next((scope for scope, b in found if b.mini < 1 and b.full < 1), None)
        if spent is not None:
            return Verdict(Disposition.METADATA, spent, self._reason(spent))
        for _, bucket in found:
            if bucket.mini >= 1:
                bucket.mini -= 1
            else:
                bucket.full -= 1
        if most is Disposition.MINI or short is None:
            return Verdict(Disposition.MINI)
        return Verdict(Disposition.MINI, short, self._reason(short))

    def spent(self, scope: Scope, key: str, now_ns: int) -> str | None:
        """Return why nothing would be kept of a crash with this key; None when something may be."""
        if scope not in self._rates:
            return None
        bucket = self._bucket(scope, key, now_ns)
        return self._reason(scope) if bucket.full < 1 and bucket.mini < 1 else None

    def _reason(self, scope: Scope) -> str:
        rate = self._rates[scope]
        kept = f"{rate.full} full and {rate.mini} mini cores in {format_duration(rate.per_ns)}"
        return f"{_REASON}{scope}: more crashes than {kept}"

    def _bucket(self, scope: Scope, key: str, now_ns: int) -> _Bucket:
        """Find or make a bucket, refilled up to now."""
        buckets, rate = self._buckets[scope], self._rates[scope]
        bucket = buckets.pop(key, None)
        if bucket is None:
            bucket = _Bucket(rate.full, rate.mini, now_ns)
            if len(buckets) >= BUCKETS_MAX:
                del buckets[next(iter(buckets))]
        buckets[key] = bucket  # last in the order of use
        share = max(0, now_ns - bucket.time_ns) / rate.per_ns
        bucket.full = min(rate.full, bucket.full + share * rate.full)
        bucket.mini = min(rate.mini, bucket.mini + share * rate.mini)
        bucket.time_ns = now_ns
        return bucket

    def to_json(self) -> dict[str, Any]:
        """Build the state's JSON object."""
        return {
            scope.value: [[key, b.full, b.mini, b.time_ns] for key, b in buckets.items()]
            for scope, buckets in self._buckets.items()
        }

    def load_json(self, document: object) -> bool:
        """Take a state that `to_json` made; False, and no change, where it is not one."""
        try:
            states = dict(document)  # type: ignore[call-overload]  # what it may raise is below
            states.setdefault(Scope.CONTAINERS.value, [])  # newer than the others
            loaded = {scope: _parse_buckets(states[scope.value]) for scope in Scope}
        except (KeyError, TypeError, ValueError, OverflowError):
            return False
        self._buckets = loaded
        return True


def _parse_buckets(rows: Any) -> dict[str, _Bucket]:
    found: dict[str, _Bucket] = {}
    for key, full, mini, time_ns in rows[-BUCKETS_MAX:]:
        if not isinstance(key, str) or len(key) > _KEY_MAX or type(time_ns) is not int:
            raise ValueError(f"bucket {key!r:.40}")
        found[key] = _Bucket(max(0.0, float(full)), max(0.0, float(mini)), max(0, time_ns))
    return found
