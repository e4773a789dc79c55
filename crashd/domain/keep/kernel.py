"""Plans which kernel dumps to delete: a pure function from the dumps to an ordered list.

These hold for every policy:

- never deleted are the newest complete dump, the newest dump that may be complete, and dumps that
  are pinned, being written, or not ours;
- dumps that are not ours do not count either, so that a planted directory displaces nothing;
- a dump that is not certainly complete never displaces one that is or may be: dumps known to be cut
  have their own count, and are deleted first if space is short;
- nothing is deleted unless a limit requires it.

DESIGN section 5. A plan covers the dumps of one file system.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_PLAUSIBLE_NS: Final = 10**18
"""September 2001: an older dump was dated by a clock that had not been set."""


class DumpLimit(StrEnum):
    """The limit that required it, in the words of `Limit` for processes: the configuration's."""

    AGE = "max_age"
    COUNT = "max_count"
    USE = "max_use"
    FREE = "keep_free"


@dataclass(frozen=True, slots=True)
class KernelDump:
    """What the plan must know about one dump."""

    key: str
    """The caller's name for it; unique."""
    time_ns: int
    """When the kernel crashed, by the clock of that machine."""
    seen_ns: int
    """When crashd first saw it, by this host's clock."""
    size_bytes: int
    complete: bool
    """Certainly complete: its end was seen."""
    maybe: bool = False
    """Possibly complete: nothing speaks against it."""
    trusted: bool = True
    """False if planted or owned by another user (DumpDirectory.faults)."""
    pinned: bool = False
    capturing: bool = False

    @property
    def dated_ns(self) -> int:
        """The time used for the order: a dump cannot have been made after crashd saw it."""
        return self.time_ns if _PLAUSIBLE_NS <= self.time_ns <= self.seen_ns else self.seen_ns


@dataclass(frozen=True, slots=True)
class KernelPolicy:
    """`[retention.kernel]` as numbers; 0 means no limit."""

    max_count: int = 0
    """Complete dumps to keep, and the same number of incomplete ones. Older pinned dumps are kept
    in addition."""
    max_use_bytes: int = 0
    keep_free_bytes: int = 0
    max_age_ns: int = 0


@dataclass(frozen=True, slots=True)
class DumpDeletion:
    """One dump to delete."""

    key: str
    reason: DumpLimit
    why: str
    size_bytes: int


def plan_retention(
    dumps: Iterable[KernelDump], free_bytes: int, policy: KernelPolicy, now_ns: int
) -> tuple[DumpDeletion, ...]:
    """Decide which dumps to delete, in order.

    `free_bytes` is the space that the file system has left for root. The order follows the
    limits: age, count, use, free; within each, oldest first, and incomplete dumps first if
    space is short.
    """
    ours = sorted((d for d in dumps if d.trusted), key=lambda d: (d.dated_ns, d.key))
    settled = [d for d in reversed(ours) if not d.capturing]
    whole = next((d for d in settled if d.complete), None)
    maybe = next((d for d in settled if d.maybe and not d.complete), None)
    kept = {d.key for d in (whole, maybe) if d is not None}
    left = {d.key: d for d in ours if not (d.key in kept or d.pinned or d.capturing)}
    deletions: list[DumpDeletion] = []

    def delete(dump: KernelDump, reason: DumpLimit, why: str) -> None:
        del left[dump.key]
        deletions.append(DumpDeletion(dump.key, reason, why, dump.size_bytes))

    if policy.max_age_ns > 0:
        for dump in [d for d in left.values() if now_ns - d.dated_ns > policy.max_age_ns]:
            delete(dump, DumpLimit.AGE, _age_text(now_ns - dump.dated_ns, policy))
    if policy.max_count > 0:
        for dump in _over_count(ours, policy.max_count):
            if dump.key in left:
                kind = "complete" if dump.complete or dump.maybe else "incomplete"
                why = f"older than the newest {policy.max_count} {kind} dumps"
                delete(dump, DumpLimit.COUNT, why)
    use = sum(d.size_bytes for d in ours) - sum(d.size_bytes for d in deletions)
    free = free_bytes + sum(d.size_bytes for d in deletions)
    # Stable sort: oldest first within each kind. Empty dumps would free nothing.
    for dump in sorted(
        (d for d in left.values() if d.size_bytes), key=lambda d: (d.complete, d.maybe)
    ):
        if 0 < policy.max_use_bytes < use:
            why = f"kernel dumps use {use} bytes, more than the {policy.max_use_bytes} allowed"
            delete(dump, DumpLimit.USE, why)
        elif free < policy.keep_free_bytes:
            why = f"{free} bytes are free, less than the {policy.keep_free_bytes} required"
            delete(dump, DumpLimit.FREE, why)
        else:
            break
        use -= dump.size_bytes
        free += dump.size_bytes
    return tuple(deletions)


def _over_count(ours: Sequence[KernelDump], count: int) -> list[KernelDump]:
    """Return the dumps beyond the newest `count` of their kind, oldest first.

    A dump that may be complete does not count, and is deleted once `count` certainly complete
    ones came after it.
    """
    settled = [d for d in ours if not d.capturing]
    sound = [d for d in settled if d.complete or d.maybe]
    cut = [d for d in settled if not (d.complete or d.maybe)]
    newer = [sum(other.complete for other in sound[at + 1 :]) for at in range(len(sound))]
    over = [dump for dump, after in zip(sound, newer, strict=True) if after >= count]
    over += cut[: max(0, len(cut) - count)]
    return sorted(over, key=lambda d: (d.dated_ns, d.key))


def _age_text(age_ns: int, policy: KernelPolicy) -> str:
    day = 86_400 * 10**9
    return f"{age_ns // day} days old, more than the {policy.max_age_ns / day:g} allowed"
