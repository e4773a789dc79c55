"""Which crashes of processes go, so that the store stays within its limits: decided here, not done.

`plan` turns (crashes, usage, policy, now) into an ordered list of deletions, and `room` tells how
much a capture may write. A deletion takes the core and leaves a tombstone, the crash's metadata; a
whole one takes the metadata too. Nothing here reads a clock, a disk or the index. What holds:

1. Nothing in flight goes, nothing pinned, and never the newest core of all, whatever its age,
   unless a newer one is being captured: or one that fills the disk would be the last for ever.
2. `max_age`, `max_per_signature` and `metadata_max_age` come first, each on its own merits. Of one
   user's crashes with a signature the first and the newest core stay (of one allowed: the newest),
   and of the others first those of the unit that has most of them.
3. `max_count`, `max_use`, `keep_free` then take cores one by one: always from the user who uses
   most of what is short, pins not counted. No name that a user can choose (unit, session,
   container, executable, and so the signature) makes this another's turn.
4. Of one user they go from the unit that uses most, and the last core of a signature only when no
   signature of that user has a second one that may go. Of one unit the oldest goes first, but the
   first of a signature after those in its midst, and the newest after both.
5. While a user has cores that cannot go, captures above all, other users' go for bytes only as far
   as they use more than those; the same holds for the last ones of the units of one user. So it
   does for the newest core of all, as far as nothing but that is what is too much.
6. Where the cores of 3 do not suffice, metadata goes, the oldest of whoever has most; before them,
   where metadata has come to use more than half of the store. But history is not burnt for
   nothing: for bytes, metadata goes only where the limit is then met; for inodes, of which a core
   has one, metadata goes first, and nothing at all goes unless the limit is then met.
7. Planning again after the deletions are carried out gives nothing.

Order is that of `sequence`; the wall clock only gives ages, as far as it is believed: see
crashd/domain/keep/believed.py. The tombstone that a later stamp contradicts stays as long as the
crash with that stamp. What cannot be seen here is a *now* that runs ahead: the caller gives a
time that is surely not, or None, and nothing goes for its age.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import NamedTuple

from crashd.domain.keep.believed import EARLIEST_NS, believe
from crashd.domain.keep.fairness import (
    Claimant,
    Stage,
    by_user,
    largest_new,
    most_by_user,
    most_of_others,
    take_fairly,
)
from crashd.domain.units import Amount


class Limit(StrEnum):
    """The limit that a crash was deleted for."""

    MAX_USE = "max_use"
    KEEP_FREE = "keep_free"
    MAX_COUNT = "max_count"
    MAX_AGE = "max_age"
    MAX_PER_SIGNATURE = "max_per_signature"
    METADATA_MAX_AGE = "metadata_max_age"
    INODES = "inodes"


@dataclass(frozen=True, slots=True)
class StoredCrash:
    """One entry of the store, as far as retention is concerned."""

    id: str
    sequence: int
    """Grows with each crash, whatever the clock does; equal ones are ordered by id."""
    time_ns: int
    stored_bytes: int
    """All that the entry has on disk (blocks, not lengths); in flight: all it may come to have."""
    inodes: int
    owner: str
    """The unit: which part of the user's share it is."""
    signature_key: str
    """The signature, or what stands for it where there is none: executable and signal."""
    pinned: bool = False
    has_core: bool = True
    """False for a tombstone, and for what never was more than metadata."""
    in_flight: bool = False
    """Still being captured: it counts in full, and its core is no core yet."""
    metadata_bytes: int = 0
    """Of `stored_bytes`: what stays without the core."""
    metadata_inodes: int = 0
    """The same of `inodes`."""
    user: str = ""
    """Whose share it is; uids that belong to one user are one here."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What there is on the file system of the store."""

    total_bytes: int
    """0 where it does not tell: no share of it is worked out, and `keep_free` says nothing."""
    free_bytes: int
    """Free for the daemon now, and what comes free once files that are deleted but open close."""
    free_inodes: int = 0
    total_inodes: int = 0
    """0 where the file system does not count them, as btrfs."""
    reserved_bytes: int = 0
    """Of the `stored_bytes` of those in flight: what is not written yet, and so still free."""
    unlisted_bytes: int = 0
    """Stored by crashes that are not in the list. After a capture a plan without tombstones (and
    without a clock: they hold the evidence) is as good for the moment, and much cheaper."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits; None is no limit."""

    max_use: Amount | None = None
    """A share is one of the file system."""
    keep_free: Amount | None = None
    """The same share of the inodes stays free, also where this is in bytes."""
    max_count: int | None = None
    """Crashes with a core, those in flight included."""
    max_age_ns: int | None = None
    """Of a core."""
    max_per_signature: int | None = None
    """Cores of one user."""
    metadata_max_age_ns: int | None = None
    """Of a crash without core, since the crash."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """One crash that loses its core, or goes altogether; no crash is in a plan twice."""

    id: str
    reason: Limit
    frees_bytes: int
    whole: bool
    """Its metadata goes as well."""


def plan(
    crashes: Iterable[StoredCrash], usage: Usage, policy: Policy, now_ns: int | None
) -> tuple[Deletion, ...]:
    """Decide what goes, in the order in which it is to go.

    `now_ns` must not be ahead of the true time; None where that is not sure, and nothing goes for
    its age. Work is that of sorting the crashes: under a second for 100,000.
    """
    ages = policy.max_age_ns is not None or policy.metadata_max_age_ns is not None
    store = _Store(crashes, policy, now_ns if ages else None)
    stored_bytes, inodes = sum(store.bytes.uses), sum(store.inodes.uses)
    max_use, keep_free = _limits(usage, policy)
    while True:
        store.drop_old_cores(policy.max_age_ns)
        store.limit_signatures(policy.max_per_signature)
        store.drop_old_metadata()
        if policy.max_count is not None:
            short = sum(store.count.uses) - policy.max_count
            store.shed_cores(store.count, short, Limit.MAX_COUNT)
        if max_use is not None:
            short = sum(store.bytes.uses) + usage.unlisted_bytes - max_use
            store.meet_bytes(short, Limit.MAX_USE)
        if keep_free is not None:
            free = usage.free_bytes - usage.reserved_bytes + stored_bytes - sum(store.bytes.uses)
            store.meet_bytes(keep_free - free, Limit.KEEP_FREE)
            if usage.total_inodes > 0:
                free = usage.free_inodes + inodes - sum(store.inodes.uses)
                store.meet_inodes(keep_free * usage.total_inodes // usage.total_bytes - free)
        if not store.reconsider():
            return store.list_deletions()


def room(
    crashes: Iterable[StoredCrash], usage: Usage, policy: Policy, owner: str, user: str = ""
) -> int:
    """Return how many bytes a new crash of `owner` may use, its metadata included.

    So many are free once a plan is carried out that has it among its own, in flight: `stored_bytes`
    what it may use, and as much more in `Usage.reserved_bytes`. That may cost cores of which there
    are several, and the owner's own; others' as rule 5 says. Metadata makes no room.
    """
    store = _Store(crashes, policy, None, coming=True)
    max_use, keep_free = _limits(usage, policy)
    spare = usage.free_bytes - usage.reserved_bytes - (keep_free or 0)
    if max_use is not None:
        spare = min(spare, max_use - sum(store.bytes.uses) - usage.unlisted_bytes)
    return store.find_room(Claimant(user, owner), spare)


class _Resource(NamedTuple):
    """Something of which there is a limited amount: what each crash has of it."""

    uses: list[int]
    """Now: what the plan takes is gone from it."""
    keeps: list[int]
    """By its metadata."""


class _Store:
    """The crashes in their order, and what becomes of them in the course of planning."""

    def __init__(
        self,
        crashes: Iterable[StoredCrash],
        policy: Policy,
        now_ns: int | None,
        *,
        coming: bool = False,
    ) -> None:
        self.crashes = sorted(crashes, key=lambda crash: (crash.sequence, crash.id))
        self._reasons: dict[int, Limit] = {}
        known = self.crashes
        self.core = [crash.has_core and not crash.in_flight for crash in known]
        self.shares = [Claimant(crash.user, crash.owner) for crash in known]
        self._keys = [(crash.user, crash.signature_key) for crash in known]
        self._pinned = [crash.pinned for crash in known]
        self._gone = [False] * len(known)
        self.fixed = [crash.pinned or crash.in_flight for crash in known]
        cores = self._list_cores()
        self._newest: int | None = None
        if not coming and not any(c.in_flight and not c.has_core for c in known):
            self._newest = next((i for i in cores[-1:] if not known[i].pinned), None)
            if self._newest is not None:
                self.fixed[self._newest] = True
        self._cores_of = Counter(self._keys[i] for i in cores)
        self.bytes = _Resource(
            [crash.stored_bytes for crash in known],
            [min(crash.metadata_bytes, crash.stored_bytes) for crash in known],
        )
        self.inodes = _Resource(
            [crash.inodes for crash in known],
            [min(crash.metadata_inodes, crash.inodes) for crash in known],
        )
        self.count = _Resource(
            [int(crash.has_core or crash.in_flight) for crash in known], [0] * len(known)
        )
        self._resources = (self.bytes, self.inodes, self.count)
        self._now_ns = now_ns if now_ns is not None and now_ns >= EARLIEST_NS else None
        self._metadata_max_age_ns = policy.metadata_max_age_ns
        self._look_at_times()

    def list_deletions(self) -> tuple[Deletion, ...]:
        """List what was taken, in the order of taking."""
        found = [(i, self.crashes[i], reason) for i, reason in self._reasons.items()]
        left = self.bytes.uses
        return tuple(
            Deletion(c.id, r, c.stored_bytes - left[i], self._gone[i]) for i, c, r in found
        )

    def drop_old_cores(self, max_age_ns: int | None) -> None:
        """Evict the cores that are older."""
        for i, older in enumerate(self._list_older(max_age_ns)):
            if older and self.may_lose_core(i):
                self._delete_core(self.count, Limit.MAX_AGE, i)

    def limit_signatures(self, maximum: int | None) -> None:
        """Evict what a signature has more than so many cores of one user."""
        if maximum is None:
            return
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for i in self._list_cores():
            groups[self._keys[i]].append(i)
        for group in groups.values():
            if len(group) <= maximum:
                continue
            kept = (group[0], group[-1])[2 - min(maximum, 2) :]
            queues = self._queue(i for i in group if self.may_lose_core(i) and i not in kept)
            take = partial(self._delete_core, self.count, Limit.MAX_PER_SIGNATURE)
            uses = self.uses_of_shares(self.count, group)
            take_fairly([Stage(queues, take)], uses, len(group) - maximum)

    def drop_old_metadata(self) -> None:
        """Delete tombstones that are too old, but none that contradicts the stamp of another."""
        if not any(self._expired):
            return
        self._evidence.clear()
        for i in reversed(range(len(self.crashes))):
            if self._gone[i]:
                continue
            if self._expired[i] and self._is_metadata(i) and i not in self._evidence:
                self._delete(i, Limit.METADATA_MAX_AGE, whole=True)
            elif (contradicted := self._contradicts[i]) is not None:
                self._evidence.add(contradicted)

    def meet_bytes(self, short: int, reason: Limit) -> None:
        """Make up for the bytes that are missing, or come as near as cores allow."""
        if short <= 0:
            return
        possible = short <= self._all_gains(self.bytes)
        if possible:
            metadata = sum(self.bytes.uses[i] for i in self._list_metadata())
            excess = 2 * metadata - sum(self.bytes.uses)
            short = self._drop_metadata(self.bytes, short, reason, at_most=excess)
        short = self.shed_cores(self.bytes, short, reason)
        if possible and short <= self._gains_of_metadata():
            short = self._drop_metadata(self.bytes, short, reason)
        self._unmet |= short > 0

    def meet_inodes(self, short: int) -> None:
        """Make up for the inodes that are missing, if that is possible."""
        if 0 < short <= self._all_gains(self.inodes):
            short = self._drop_metadata(self.inodes, short, Limit.INODES)
            short = self.shed_cores(self.inodes, short, Limit.INODES)
            short = self._drop_metadata(self.inodes, short, Limit.INODES)
        self._unmet |= short > 0

    def shed_cores(self, resource: _Resource, short: int, reason: Limit) -> int:
        """Evict cores until nothing is short; return what still is."""
        busy = self._busy_of_shares() if resource is self.bytes else Counter[Claimant]()
        if resource is self.bytes and self._newest is not None:
            newest, share = self.bytes.uses[self._newest], self.shares[self._newest]
            of_user = most_by_user(busy).get(share.user, -1)
            if newest > min(of_user, max(by_user(busy).values(), default=-1)):
                short = newest + self._shed(resource, short - newest, reason, busy)
                busy[share] += newest
        return self._shed(resource, short, reason, busy)

    def _shed(
        self, resource: _Resource, short: int, reason: Limit, busy: Mapping[Claimant, int]
    ) -> int:
        """Evict cores until nothing is short; `busy` has bytes that cannot go."""
        if short <= 0:
            return short
        queues, levels = self._queue_cores(), most_by_user(busy)
        spared = {s: levels[s.user] for s in queues if s.user in levels and s not in busy}
        others = most_of_others(by_user(busy))
        several = {share: queue.copy() for share, queue in queues.items()}
        last = Stage(queues, partial(self._delete_core, resource, reason), spared)
        return take_fairly(
            [self._stage_of_several(several, resource, reason), last],
            self.uses_of_shares(resource, range(len(self.crashes))),
            short,
            {user: others(user) for user in {share.user for share in queues}},
        )

    def _stage_of_several(
        self, queues: dict[Claimant, list[int]], resource: _Resource, reason: Limit
    ) -> Stage:
        """Take no user's last core of a signature."""

        def take(i: int) -> int:
            return (
                self._delete_core(resource, reason, i) if self._cores_of[self._keys[i]] > 1 else 0
            )

        return Stage(queues, take)

    def find_room(self, new: Claimant, spare: int) -> int:
        """Return what a new crash may use: what is to spare, and what others give for it."""
        everyone = range(len(self.crashes))
        before = self.uses_of_shares(self.bytes, everyone)
        several = self._stage_of_several(self._queue_cores(), self.bytes, Limit.MAX_USE)
        take_fairly([several], before.copy(), sum(before.values()) + 1)
        uses = self.uses_of_shares(self.bytes, everyone)
        last: dict[Claimant, int] = defaultdict(int)
        for i in filter(self.may_lose_core, everyone):
            last[self.shares[i]] += self.bytes.uses[i] - self.bytes.keeps[i]
        return largest_new(new, spare, before, uses, last, self._busy_of_shares())

    def _busy_of_shares(self) -> Counter[Claimant]:
        """Add up the bytes of each that cannot go now: being captured, read or locked."""
        busy: Counter[Claimant] = Counter()
        for i, crash in enumerate(self.crashes):
            if crash.in_flight and not crash.pinned:
                busy[self.shares[i]] += self.bytes.uses[i]
        return busy

    def may_lose_core(self, i: int) -> bool:
        return self.core[i] and not self.fixed[i]

    def uses_of_shares(self, resource: _Resource, among: Iterable[int]) -> dict[Claimant, int]:
        """Add up what each uses; pins are the administrator's."""
        uses: dict[Claimant, int] = defaultdict(int)
        shares, pinned, used = self.shares, self._pinned, resource.uses
        for i in among:
            if not pinned[i]:
                uses[shares[i]] += used[i]
        return uses

    def _list_cores(self) -> list[int]:
        return [i for i, core in enumerate(self.core) if core]

    def _list_metadata(self) -> list[int]:
        return [i for i in range(len(self.crashes)) if self._is_metadata(i)]

    def _is_metadata(self, i: int) -> bool:
        return not self.core[i] and not self.fixed[i] and not self._gone[i]

    def _all_gains(self, resource: _Resource) -> int:
        """Add up what would come free if everything went that may."""
        total = 0
        for i, uses in enumerate(resource.uses):
            if not self.fixed[i] and (not self.core[i] or self._gain(resource, i) > 0):
                total += uses - (resource.keeps[i] if i in self._evidence else 0)
        return total

    def _gains_of_metadata(self) -> int:
        return sum(self.bytes.uses[i] for i in self._list_metadata() if i not in self._evidence)

    def _gain(self, resource: _Resource, i: int) -> int:
        """Work out what evicting a core frees."""
        return resource.uses[i] - (0 if self._goes_whole(i) else resource.keeps[i])

    def _goes_whole(self, i: int) -> bool:
        return self._expired[i] and i not in self._evidence

    def _queue_cores(self) -> dict[Claimant, list[int]]:
        """List what cores each may lose, next at the end."""
        cores = self._list_cores()
        newest = {self._keys[i]: i for i in cores}
        first = {self._keys[i]: i for i in reversed(cores)}
        ranked: tuple[list[int], list[int], list[int]] = ([], [], [])
        for i in filter(self.may_lose_core, cores):
            key = self._keys[i]
            ranked[2 if newest[key] == i else 1 if first[key] == i else 0].append(i)
        return self._queue(chain(*ranked))

    def _queue(self, crashes: Iterable[int]) -> dict[Claimant, list[int]]:
        """Divide them by unit, each's in reverse: the next one is the last."""
        queues: dict[Claimant, list[int]] = defaultdict(list)
        for i in crashes:
            queues[self.shares[i]].append(i)
        for queue in queues.values():
            queue.reverse()
        return queues

    def reconsider(self) -> bool:
        """Tell whether what was taken may allow more: a stamp's doubts gone, a limit in reach."""
        nothing_new = self._before == (len(self._reasons), sum(self._gone))
        if nothing_new or not (self._doubted or self._unmet):
            return False
        self._look_at_times()
        return True

    def _look_at_times(self) -> None:
        self._before = (len(self._reasons), sum(self._gone))
        self._unmet = False
        stamps = [
            None if gone else crash.time_ns
            for crash, gone in zip(self.crashes, self._gone, strict=True)
        ]
        self._times, self._contradicts = believe(stamps, self._now_ns)
        self._expired = self._list_older(self._metadata_max_age_ns)
        self._evidence = {i for i in self._contradicts if i is not None}
        looks = zip(self.crashes, self._times, self._gone, strict=True)
        self._doubted = self._now_ns is not None and any(
            crash.time_ns != time_ns and not gone for crash, time_ns, gone in looks
        )

    def _list_older(self, limit_ns: int | None) -> list[bool]:
        if limit_ns is None or self._now_ns is None:
            return [False] * len(self.crashes)
        oldest_ns = self._now_ns - limit_ns
        return [time_ns < oldest_ns for time_ns in self._times]

    def _delete_core(self, resource: _Resource, reason: Limit, i: int) -> int:
        """Evict a core if that frees anything of `resource`; tell how much."""
        gain = self._gain(resource, i) if self.core[i] else 0
        if gain > 0:
            self.core[i] = False
            self._cores_of[self._keys[i]] -= 1
            self._delete(i, reason, whole=self._goes_whole(i))
        return gain

    def _drop_metadata(
        self, resource: _Resource, short: int, reason: Limit, at_most: int | None = None
    ) -> int:
        """Delete metadata until nothing is short; tell what still is."""
        wanted = short if at_most is None else min(short, at_most)
        if wanted <= 0:
            return short

        def take(i: int) -> int:
            gain = resource.uses[i]
            if gain > 0:
                self._delete(i, reason, whole=True)
            return gain

        candidates = self._list_metadata()
        queues = self._queue(i for i in candidates if i not in self._evidence)
        uses = self.uses_of_shares(resource, candidates)
        return short - wanted + take_fairly([Stage(queues, take)], uses, wanted)

    def _delete(self, i: int, reason: Limit, *, whole: bool) -> None:
        for uses, keeps in self._resources:
            uses[i] = 0 if whole else keeps[i]
        self._gone[i] = whole
        self._reasons.setdefault(i, reason)


def _limits(usage: Usage, policy: Policy) -> tuple[int | None, int | None]:
    """Work out `max_use` and `keep_free`; None where there is none, or nothing to relate it to."""
    use, free, total = policy.max_use, policy.keep_free, usage.total_bytes
    relative = use is not None and use.thousandths is not None
    return (
        None if use is None or (relative and total <= 0) else use.of(total),
        None if free is None or total <= 0 else free.of(total),
    )
