"""Which objects of a host are new: the cursor of one host, and what a listing adds to it. Pure.

The keys of a host's objects begin with the hour of *its* clock, so that a listing from the last
hour on costs one request, however many objects a host has. An object whose hour fits the time at
which the object store got it is *in time*: such listings find it. All others (a clock behind, an
upload that took long) are *late*: only a listing of everything finds them, which is made now and
then, and each time for a host with few objects. Times of the object store decide what is new; a
short overlap covers stores that list an object some time after its own time. Names of the objects
within the overlap are remembered. If there are too many of them, the overlap is shorter: otherwise
those that are forgotten would be taken again by each listing.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from crashd.domain.fleet.keys import RECORDS, hour_prefix, parse_records_key
from crashd.edge.fleet.bucket import PAGE, Found
from crashd.errors import FormatError

LAG = timedelta(hours=1)
"""An object is in time if its key names the hour that was so long ago, or a later one."""
OVERLAP = timedelta(hours=2)
"""Listings begin so long before the newest object: more than LAG, for a slow listing."""
SETTLING = timedelta(minutes=10)
"""A store may list an object so long after the object's own time."""
LATE_EVERY = timedelta(minutes=10)
LONG = timedelta(minutes=5)
"""After a look that took so long, no mark is later than its begin: what the host wrote meanwhile
may lie before what was listed last."""
BACKOFF = 1.5
"""By how much longer a host is left alone after each listing without new objects, from the second
one on: a host that writes about as often as it is listed is missed now and then, and must not wait
longer for that."""
RECENT_MAX = 5000
FEW = PAGE - 100
"""Objects that one request lists."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the objects of one host are indexed."""

    host: str
    objects: int | None = None
    """At the last listing of everything; None before it."""
    mark: datetime | None = None
    """Of the objects that were in time, the newest."""
    late_mark: datetime | None = None
    """The newest object at the last listing of everything."""
    late_looked: datetime | None = None
    recent: frozenset[str] = frozenset()
    """Objects that are indexed and may be listed again as new."""
    idle_seconds: float = 0
    """How long it is left alone for finding nothing new; 0 if something was."""

    def wants_all(self, now: datetime) -> bool:
        """Return whether the next listing is of everything."""
        if self.objects is None or self.mark is None or self.objects <= FEW:
            return True
        return self.late_looked is None or now - self.late_looked >= LATE_EVERY

    def start(self, now: datetime) -> str | None:
        """Return the key after which to list; None for all."""
        if self.wants_all(now) or self.mark is None:
            return None
        start_ns = max(0, int((self.mark - OVERLAP).timestamp())) * 10**9
        return hour_prefix(self.host, start_ns).rstrip("/")

    @property
    def prefix(self) -> str:
        """The prefix of the host's records."""
        return f"{RECORDS}{self.host}/"


@dataclass(slots=True)
class Look:
    """One listing of a host's objects; `takes` is asked for each of them."""

    cursor: Cursor
    everything: bool
    """Whether all objects are listed, or only those from `Cursor.start` on."""
    listed: int = 0
    taken: int = 0
    newest: datetime | None = None
    newest_in_time: datetime | None = None
    recent: dict[str, datetime] = field(default_factory=dict)
    began: datetime | None = None
    """By this machine's clock; None does not matter."""
    forgotten: datetime | None = None
    """Of the names that are forgotten because there are too many, the newest."""

    def takes(self, one: Found) -> bool:
        """Return whether an object is to be indexed now."""
        self.listed += 1
        in_time = _is_in_time(one)
        self.newest = _later(self.newest, one.modified)
        if in_time:
            self.newest_in_time = _later(self.newest_in_time, one.modified)
        elif not self.everything:
            return False
        mark = self.cursor.mark if in_time else self.cursor.late_mark
        if mark is not None and one.modified <= mark - SETTLING:
            return False
        name = _name(one.key)
        if len(self.recent) >= 2 * RECENT_MAX:
            self._forget()
        self.recent[name] = one.modified
        if name in self.cursor.recent:
            return False
        self.taken += 1
        return True

    def end(self, now: datetime, *, poll: float, idle: float) -> Cursor:
        """Return the cursor of the time after all that was taken is indexed."""
        if self.began is not None and now - self.began > LONG:
            self.newest = _earlier(self.newest, self.began)
            self.newest_in_time = _earlier(self.newest_in_time, self.began)
        self._forget()
        kept = set(self.recent)
        if not self.everything:  # what was not listed may be listed again
            kept |= set(sorted(self.cursor.recent)[: RECENT_MAX - len(kept)])
        return replace(
            self.cursor,
            objects=self.listed if self.everything else self.cursor.objects,
            mark=self._mark,
            late_mark=self._late_mark,
            late_looked=now if self.everything else self.cursor.late_looked,
            recent=frozenset(kept),
            idle_seconds=0
            if self.taken
            else min(idle, max(poll, self.cursor.idle_seconds * BACKOFF)),
        )

    @property
    def _mark(self) -> datetime | None:
        return _later(_later(self.cursor.mark, self.newest_in_time), self._shortened)

    @property
    def _late_mark(self) -> datetime | None:
        if not self.everything:
            return self.cursor.late_mark
        return _later(_later(self.cursor.late_mark, self.newest), self._shortened)

    @property
    def _shortened(self) -> datetime | None:
        """The mark by which nothing whose name is forgotten is taken again."""
        return None if self.forgotten is None else self.forgotten + SETTLING

    def _forget(self) -> None:
        """Forget names that no listing takes for new any more, and of too many the oldest."""
        marks = [mark for mark in (self._mark, self._late_mark) if mark is not None]
        limit = min(marks) - SETTLING if marks else datetime.min.replace(tzinfo=UTC)
        named = sorted((time, name) for name, time in self.recent.items() if time > limit)
        if len(named) > RECENT_MAX:
            self.forgotten = _later(self.forgotten, named[-RECENT_MAX - 1][0])
        self.recent = {name: time for time, name in named[-RECENT_MAX:]}


def _is_in_time(one: Found) -> bool:
    """Return whether a listing from the last hours on finds an object, whenever it is listed."""
    try:
        hour_ns = parse_records_key(one.key).hour_ns
    except FormatError:
        return False
    return hour_ns // 10**9 >= int((one.modified - LAG).timestamp()) // 3600 * 3600


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return other if one is None or (other is not None and other > one) else one


def _earlier(one: datetime | None, other: datetime) -> datetime | None:
    return None if one is None else min(one, other)


def _name(key: str) -> str:
    """Return the end of a key, which names an object among those of its host."""
    return key.rpartition("/")[2]
