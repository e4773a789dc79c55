"""Which kernel dumps go: a pure function from what there is to an ordered list of deletions.

What holds, whatever the policy:

- the newest complete dump is never deleted, nor the newest that may be complete, nor one that is
  pinned, being written, or not ours;
- what is not ours is not counted either: a planted directory can push nothing out;
- what is not surely complete never pushes out what is, or may be: only dumps known to be cut have a
  count of their own, and they go first where space is short;
- nothing is deleted that no limit asks for.

DESIGN section 5. The plan is made for the dumps of one file system.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_PLAUSIBLE_NS: Final = 10**18
"""September 2001: what claims to be older was dated by a clock that had not been set."""


class DumpLimit(StrEnum):
    """Which limit asked for it; label of crashd_retention_deleted_total."""

    AGE = "age"
    COUNT = "count"
    USE = "use"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class KernelDump:
    """What the plan has to know of one dump."""

    key: str
    """Whatever names it to the caller; no two have the same."""
    time_ns: int
    """When the kernel crashed, by whatever clock that machine had."""
    seen_ns: int
    """When crashd first saw it, by this host's clock."""
    size_bytes: int
    complete: bool
    """Surely so: its end was seen."""
    maybe: bool = False
    """Not surely, but nothing speaks against it."""
    trusted: bool = True
    """False: planted or another's (DumpDirectory.faults)."""
    pinned: bool = False
    capturing: bool = False

    @property
    def dated_ns(self) -> int:
        """The time that it is ordered by: a dump cannot have been made after it was seen."""
        return self.time_ns if _PLAUSIBLE_NS <= self.time_ns <= self.seen_ns else self.seen_ns


@dataclass(frozen=True, slots=True)
class KernelPolicy:
    """`[retention.kernel]`, resolved to numbers; 0 is no limit."""

    max_count: int = 0
    """Complete dumps to be kept, and as many incomplete ones. Pins come on top where they are
    older."""
    max_use_bytes: int = 0
    keep_free_bytes: int = 0
    max_age_ns: int = 0


@dataclass(frozen=True, slots=True)
class DumpDeletion:
    """One dump that is to go."""

    key: str
    reason: DumpLimit
    why: str
    size_bytes: int


def plan_retention(
    dumps: Iterable[KernelDump], free_bytes: int, policy: KernelPolicy, now_ns: int
) -> tuple[DumpDeletion, ...]:
    """Decide which dumps go, in which order.

    `free_bytes` is what the file system has left for root. The order is that of the limits: age,
    count, use, free; the oldest first within each, incomplete ones first where space is short.
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
    # Stable: the oldest first within each. What is empty would free nothing.
    for dump in sorted(
        (d for d in left.values() if d.size_bytes), key=lambda d: (d.complete, d.maybe)
    ):
        if 0 < policy.max_use_bytes < use:
            why = f"kernel dumps use {use} bytes, {policy.max_use_bytes} are allowed"
            delete(dump, DumpLimit.USE, why)
        elif free < policy.keep_free_bytes:
            why = f"{free} bytes are free, {policy.keep_free_bytes} have to be"
            delete(dump, DumpLimit.FREE, why)
        else:
            break
        use -= dump.size_bytes
        free += dump.size_bytes
    return tuple(deletions)


def _over_count(ours: Sequence[KernelDump], count: int) -> list[KernelDump]:
    """List the dumps beyond the newest `count` of their kind, the oldest first.

    What may be complete counts for nothing, and goes where enough that surely is came after it.
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
    return f"{age_ns // day} days old, {policy.max_age_ns / day:g} are allowed"
