"""The crash-loop limiter: decides how much to keep of a crash that happens again and again.

Each crash site, unit and user has two token buckets, for full and for mini cores. The first `full`
crashes of a scope keep the full core, the next `mini` ones a mini core, and all others are only
counted. After `per` without a crash the buckets are full again. A crash needs a token of each of
its scopes.

Every key begins with the user id, so that one user's programs never use up another user's tokens;
and it names the container, so that a container never uses up those of the host. Things that a user
can create without limit get no tokens of their own: a user's own containers count for the user, and
root's containers share one more bucket for each uid.

Pure: the clock is passed in, and the state is JSON.
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
"""Buckets per scope; the least recently used one is dropped, and starts full when it comes back."""
CONTAINERS_SHARE: Final = 4
"""How many times the limit of one user applies to all containers of one uid together."""
_KEY_MAX = 400
_REASON: Final = "limiter."


class Scope(StrEnum):
    """What crashes are counted for."""

    SITE = "site"
    """User, executable and build-id, signal, module and offset of the program counter."""
    UNIT = "unit"
    UID = "uid"
    CONTAINERS = "containers"
    """All crashes of one uid in containers that root created."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many crashes of one scope are kept in which time."""

    full: int
    mini: int
    per_ns: int


def rates_of(site: Rate, unit: Rate, uid: Rate) -> dict[Scope, Rate]:
    """Build the rates of all scopes from the configured ones."""
    containers = Rate(CONTAINERS_SHARE * uid.full, CONTAINERS_SHARE * uid.mini, uid.per_ns)
    return {Scope.SITE: site, Scope.UNIT: unit, Scope.UID: uid, Scope.CONTAINERS: containers}


class Verdict(NamedTuple):
    """How much of a crash may be kept; which scope forbids more, and why."""

    disposition: Disposition
    scope: Scope | None = None
    reason: str | None = None


@dataclass(slots=True)
class _Bucket:
    full: float
    mini: float
    time_ns: int


def is_only_counted(crash: Crash) -> bool:
    """Return whether the limiter kept only the record of a crash."""
    reason = crash.capture.reason or ""
    return crash.capture.disposition is Disposition.METADATA and reason.startswith(_REASON)


def keys_of(site: Site) -> dict[Scope, str]:
    """Return the keys of the buckets that count a crash."""
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
    """The buckets. Times are CLOCK_REALTIME ns; a clock that jumps back refills nothing."""

    def __init__(self, rates: Mapping[Scope, Rate]) -> None:
        self._rates = dict(rates)
        self._buckets: dict[Scope, dict[str, _Bucket]] = {scope: {} for scope in Scope}

    def set_rates(self, rates: Mapping[Scope, Rate]) -> None:
        """Set new rates; tokens already used stay used, up to the new maximum."""
        self._rates = dict(rates)

    def decide(self, keys: Mapping[Scope, str], most: Disposition, now_ns: int) -> Verdict:
        """Decide how much to keep of a crash, at most `most`, and count it."""
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
        """Return why nothing would be kept of a crash with this key; None if something would."""
        if scope not in self._rates:
            return None
        bucket = self._bucket(scope, key, now_ns)
        return self._reason(scope) if bucket.full < 1 and bucket.mini < 1 else None

    def _reason(self, scope: Scope) -> str:
        rate = self._rates[scope]
        kept = f"{rate.full} full and {rate.mini} mini cores in {format_duration(rate.per_ns)}"
        return f"{_REASON}{scope}: more crashes than {kept}"

    def _bucket(self, scope: Scope, key: str, now_ns: int) -> _Bucket:
        """Return the bucket of a key, refilled up to now; create it if it does not exist."""
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
        """Load a state that `to_json` built; return False and change nothing if it is malformed."""
        try:
            states = dict(document)  # type: ignore[call-overload]  # caught below
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
