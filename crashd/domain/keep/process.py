"""Plans which process crashes to delete, so that the store stays within its limits.

`plan` turns (crashes, usage, policy, now) into an ordered list of deletions, and `room` returns how
much a capture may write. A deletion takes the core and leaves a tombstone, the crash's metadata; a
whole deletion takes the metadata too. Nothing here reads a clock, a disk or the index. The rules:

1. Nothing in flight or pinned is deleted, and never the newest core of all, whatever its age,
   unless a newer one is being captured. Otherwise a core that fills the disk would block every
   later one.
2. `max_age`, `max_per_signature` and `metadata_max_age` come first, each by itself. Of one user's
   crashes with a signature, the first and the newest core stay (if only one is allowed, the
   newest); of the others, those of the unit with most of them are deleted first.
3. `max_count`, `max_use` and `keep_free` then take cores one by one, always from the user who uses
   most of what is short, pinned crashes not counted. No name that a user can choose (unit, session,
   container, executable, and so the signature) can shift this to another user.
4. Within a user they are taken from the unit that uses most. The last core of a signature is taken
   only when no signature of that user has a second core that may be deleted. Within a unit the
   oldest is taken first, but the first core of a signature after those in the middle, and the
   newest after both.
5. While a user has cores that cannot be deleted, above all captures, other users lose cores for
   bytes only as far as they use more than those. The same holds between the units of one user for
   their last cores, and for the newest core of all, as far as that core alone exceeds the limit.
6. If the cores of 3 do not suffice, metadata is deleted, the oldest of the user who has most; even
   before cores, once metadata uses more than half of the store. But history is not deleted in vain:
   for bytes, metadata is deleted only if the limit is then met. For inodes, of which a core has
   only one, metadata comes first, and nothing is deleted unless the limit is then met.
7. Planning again after the deletions are carried out deletes nothing more.

The order is that of `sequence`; the wall clock only gives ages, as far as it is believed
(crashd/domain/keep/believed.py). A tombstone that contradicts a later stamp stays as long as the
crash with that stamp. This module cannot detect a *now* that runs ahead: the caller passes a time
that certainly does not, or None, and then nothing is deleted for its age. Over 400 lines, because
the rules hold only together.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from crashd.domain.keep.believed import EARLIEST_NS, believe
from crashd.domain.keep.fairness import (
    Claimant,
    Offer,
    by_user,
    largest_new,
    most_by_user,
    most_of_others,
    take_fairly,
)
from crashd.domain.units import Amount

FILES_SHARE: Final = 4
"""Kept files take a quarter of `max_use` at most: cores matter more."""


class Limit(StrEnum):
    """The limit for which a crash was deleted."""

    MAX_USE = "max_use"
    KEEP_FREE = "keep_free"
    MAX_COUNT = "max_count"
    MAX_AGE = "max_age"
    MAX_PER_SIGNATURE = "max_per_signature"
    METADATA_MAX_AGE = "metadata_max_age"
    INODES = "inodes"


@dataclass(frozen=True, slots=True)
class StoredCrash:
    """One entry of the store, as retention sees it."""

    id: str
    sequence: int
    """Grows with each crash, whatever the clock does; ties are ordered by id."""
    time_ns: int
    stored_bytes: int
    """All that the entry uses on disk (blocks, not lengths); in flight: all that it may use."""
    inodes: int
    owner: str
    """The unit: the part of the user's share that it belongs to."""
    signature_key: str
    """The signature, or executable and signal if there is none."""
    pinned: bool = False
    has_core: bool = True
    """False for a tombstone, and for a crash that never had more than metadata."""
    in_flight: bool = False
    """Still being captured: it counts in full, but its core does not count as a core yet."""
    metadata_bytes: int = 0
    """The part of `stored_bytes` that stays without the core."""
    metadata_inodes: int = 0
    """The same for `inodes`."""
    user: str = ""
    """The owner of the share; all uids that belong to one user are one here."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The state of the store's file system."""

    total_bytes: int
    """0 if unknown: shares cannot be computed then, and `keep_free` does not apply."""
    free_bytes: int
    """Free for the daemon now, including deleted files that are still open."""
    free_inodes: int = 0
    total_inodes: int = 0
    """0 if the file system does not count them, as on btrfs."""
    reserved_bytes: int = 0
    """The part of the `stored_bytes` in flight that is not written yet, and so still free."""
    unlisted_bytes: int = 0
    """Used by crashes that are not in the list. Right after a capture, a plan without tombstones is
        as good and much cheaper; it needs a `now_ns` of None, because tombstones are the evidence
        against wrong stamps."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits; None means no limit."""

    max_use: Amount | None = None
    """A share is a share of the file system."""
    keep_free: Amount | None = None
    """The same share of the inodes stays free, even if this is in bytes."""
    max_count: int | None = None
    """Crashes with a core, those in flight included."""
    max_age_ns: int | None = None
    """Age of a core."""
    max_per_signature: int | None = None
    """Cores of one user with one signature."""
    metadata_max_age_ns: int | None = None
    """Age of a crash without a core."""
    keep_files: Amount | None = None
    """Files that are kept with crashes; None keeps none. At most FILES_SHARE of `max_use`."""

    def files_bytes(self, total_bytes: int) -> int:
        """Return how much kept files may use of a file system of this size."""
        size = self.keep_files.of(total_bytes) if self.keep_files is not None else 0
        if self.max_use is None:
            return size
        return min(size, self.max_use.of(total_bytes) // FILES_SHARE)


@dataclass(frozen=True, slots=True)
class Deletion:
    """One crash that loses its core, or everything; a plan names no crash twice."""

    id: str
    reason: Limit
    frees_bytes: int
    whole: bool
    """Whether its metadata is deleted as well."""


def plan(
    crashes: Iterable[StoredCrash], usage: Usage, policy: Policy, now_ns: int | None
) -> tuple[Deletion, ...]:
    """Decide what to delete, in order.

    `now_ns` must not be ahead of the true time; pass None if that is uncertain, and nothing is
    deleted for its age. For 100,000 crashes it takes a second of CPU, and three if most must go.
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

    This many bytes are free once a plan is carried out that includes the new crash, in flight, with
    this as its `stored_bytes`, and as much more in `Usage.reserved_bytes`. Making room may delete
    cores of which there are several, the owner's own cores, and cores of others by rule 5; it never
    deletes metadata.
    """
    store = _Store(crashes, policy, None, coming=True)
    max_use, keep_free = _limits(usage, policy)
    spare = usage.free_bytes - usage.reserved_bytes - (keep_free or 0)
    if max_use is not None:
        spare = min(spare, max_use - sum(store.bytes.uses) - usage.unlisted_bytes)
    return store.find_room(Claimant(user, owner), spare)


class _Resource(NamedTuple):
    """A limited resource: how much of it each crash uses."""

    uses: list[int]
    """Current use, without what the plan takes."""
    keeps: list[int]
    """Use by the metadata alone."""


class _Store:
    """The crashes in order, and their state in the course of planning."""

    def __init__(
        self,
        crashes: Iterable[StoredCrash],
        policy: Policy,
        now_ns: int | None,
        *,
        coming: bool = False,
    ) -> None:
        # Parallel lists by the crash's place in the order: planning for 100,000 must stay fast.
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
        """Return the deletions, in the order in which they were planned."""
        found = [(i, self.crashes[i], reason) for i, reason in self._reasons.items()]
        left = self.bytes.uses
        return tuple(
            Deletion(c.id, r, c.stored_bytes - left[i], self._gone[i]) for i, c, r in found
        )

    def drop_old_cores(self, max_age_ns: int | None) -> None:
        """Delete the cores that are older than `max_age_ns`."""
        for i, older in enumerate(self._list_older(max_age_ns)):
            if older and self.may_lose_core(i):
                self._delete_core(self.count, Limit.MAX_AGE, i)

    def limit_signatures(self, maximum: int | None) -> None:
        """Delete the cores beyond `maximum` per user and signature."""
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
            take_fairly([Offer(queues, take)], uses, len(group) - maximum)

    def drop_old_metadata(self) -> None:
        """Delete tombstones that are too old, except those that contradict a crash's stamp."""
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
        """Free `short` bytes, or as many as the cores allow."""
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
        """Free `short` inodes, if that is possible."""
        if 0 < short <= self._all_gains(self.inodes):
            short = self._drop_metadata(self.inodes, short, Limit.INODES)
            short = self.shed_cores(self.inodes, short, Limit.INODES)
            short = self._drop_metadata(self.inodes, short, Limit.INODES)
        self._unmet |= short > 0

    def shed_cores(self, resource: _Resource, short: int, reason: Limit) -> int:
        """Delete cores until enough is freed; return what is still missing."""
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
        """Delete cores until enough is freed; `busy` are bytes that cannot be freed."""
        if short <= 0:
            return short
        queues, levels = self._queue_cores(), most_by_user(busy)
        spared = {s: levels[s.user] for s in queues if s.user in levels and s not in busy}
        others = most_of_others(by_user(busy))
        several = {share: queue.copy() for share, queue in queues.items()}
        last = Offer(queues, partial(self._delete_core, resource, reason), spared)
        return take_fairly(
            [self._stage_of_several(several, resource, reason), last],
            self.uses_of_shares(resource, range(len(self.crashes))),
            short,
            {user: others(user) for user in {share.user for share in queues}},
        )

    def _stage_of_several(
        self, queues: dict[Claimant, list[int]], resource: _Resource, reason: Limit
    ) -> Offer:
        """Build the stage that never takes a user's last core of a signature."""

        def take(i: int) -> int:
            return (
                self._delete_core(resource, reason, i) if self._cores_of[self._keys[i]] > 1 else 0
            )

        return Offer(queues, take)

    def find_room(self, new: Claimant, spare: int) -> int:
        """Return what a new crash may use: `spare`, and what others give for it."""
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
        """Return the bytes of each unit that cannot be freed: being captured, read or locked."""
        busy: Counter[Claimant] = Counter()
        for i, crash in enumerate(self.crashes):
            if crash.in_flight and not crash.pinned:
                busy[self.shares[i]] += self.bytes.uses[i]
        return busy

    def may_lose_core(self, i: int) -> bool:
        return self.core[i] and not self.fixed[i]

    def uses_of_shares(self, resource: _Resource, among: Iterable[int]) -> dict[Claimant, int]:
        """Return what each unit uses, without pinned crashes, which are the administrator's."""
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
        """Return how much would be freed if everything deletable were deleted."""
        total = 0
        for i, uses in enumerate(resource.uses):
            if not self.fixed[i] and (not self.core[i] or self._gain(resource, i) > 0):
                total += uses - (resource.keeps[i] if i in self._evidence else 0)
        return total

    def _gains_of_metadata(self) -> int:
        return sum(self.bytes.uses[i] for i in self._list_metadata() if i not in self._evidence)

    def _gain(self, resource: _Resource, i: int) -> int:
        """Return how much deleting a core frees."""
        return resource.uses[i] - (0 if self._goes_whole(i) else resource.keeps[i])

    def _goes_whole(self, i: int) -> bool:
        return self._expired[i] and i not in self._evidence

    def _queue_cores(self) -> dict[Claimant, list[int]]:
        """Return the cores that each unit may lose, the next one at the end."""
        cores = self._list_cores()
        newest = {self._keys[i]: i for i in cores}
        first = {self._keys[i]: i for i in reversed(cores)}
        ranked: tuple[list[int], list[int], list[int]] = ([], [], [])
        for i in filter(self.may_lose_core, cores):
            key = self._keys[i]
            ranked[2 if newest[key] == i else 1 if first[key] == i else 0].append(i)
        return self._queue(chain(*ranked))

    def _queue(self, crashes: Iterable[int]) -> dict[Claimant, list[int]]:
        """Group crashes by unit, reversed: the next one is the last."""
        queues: dict[Claimant, list[int]] = defaultdict(list)
        for i in crashes:
            queues[self.shares[i]].append(i)
        for queue in queues.values():
            queue.reverse()
        return queues

    def reconsider(self) -> bool:
        """Return whether to plan again: deletions may settle a stamp or help meet a limit."""
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
        """Delete a core if that frees any of `resource`; return how much."""
        gain = self._gain(resource, i) if self.core[i] else 0
        if gain > 0:
            self.core[i] = False
            self._cores_of[self._keys[i]] -= 1
            self._delete(i, reason, whole=self._goes_whole(i))
        return gain

    def _drop_metadata(
        self, resource: _Resource, short: int, reason: Limit, at_most: int | None = None
    ) -> int:
        """Delete metadata until enough is freed; return what is still missing."""
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
        return short - wanted + take_fairly([Offer(queues, take)], uses, wanted)

    def _delete(self, i: int, reason: Limit, *, whole: bool) -> None:
        for uses, keeps in self._resources:
            uses[i] = 0 if whole else keeps[i]
        self._gone[i] = whole
        self._reasons.setdefault(i, reason)


def _limits(usage: Usage, policy: Policy) -> tuple[int | None, int | None]:
    """Return `max_use` and `keep_free` in bytes; None without a limit or without a known total."""
    use, free, total = policy.max_use, policy.keep_free, usage.total_bytes
    relative = use is not None and use.thousandths is not None
    return (
        None if use is None or (relative and total <= 0) else use.of(total),
        None if free is None or total <= 0 else free.of(total),
    )
