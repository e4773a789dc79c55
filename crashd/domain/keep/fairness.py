"""Frees a scarce resource fairly: again and again from the largest unit of the user who has most.

Users come first, because a user can create any number of units, sessions and containers; all of
them share the user's part.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from heapq import heapify, heappop, heapreplace, nlargest
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import Final, NamedTuple


class Claimant(NamedTuple):
    """The user and the unit that something belongs to."""

    user: str
    unit: str


class Offer(NamedTuple):
    """What a user gives before anything of the next offer."""

    queues: Mapping[Claimant, list[int]]
    """What each unit can give, the next item at the end; consumed."""
    take: Callable[[int], int]
    """Takes one item and returns how much that freed, or 0."""
    spared: Mapping[Claimant, int] = MappingProxyType({})
    """Units that give nothing once they use no more than this."""


_NOBODY: Final[Mapping[str, int]] = MappingProxyType({})


def take_fairly(
    stages: Sequence[Offer],
    uses: dict[Claimant, int],
    short: int,
    spared: Mapping[str, int] = _NOBODY,
) -> int:
    """Take from the user who uses most, until enough is freed; return what is still missing.

    If everything left of a user is spared because of the same user's other units, nobody who uses
    less gives instead.

    Args:
        stages: what can be taken.
        uses: what each unit uses; reduced by what is taken.
        short: how much is missing.
        spared: users who give nothing once they use no more than this.
    """
    units: dict[str, set[Claimant]] = {}
    for share in chain.from_iterable(stage.queues for stage in stages):
        units.setdefault(share.user, set()).add(share)
    givers = {user: _give(own, stages, uses) for user, own in units.items()}
    weights = by_user(uses)
    heap = [(-weights.get(user, 0), user) for user in givers]
    heapify(heap)
    while heap and short > 0:
        weight, user = heap[0]
        freed = next(givers[user], None) if -weight > spared.get(user, -1) else None
        if freed is None:
            heappop(heap)
        elif freed == 0:
            break
        else:
            short -= freed
            heapreplace(heap, (weight + freed, user))
    return short


def by_user(uses: Mapping[Claimant, int]) -> dict[str, int]:
    """Return the total use of each user."""
    found: dict[str, int] = {}
    for share, size in uses.items():
        found[share.user] = found.get(share.user, 0) + size
    return found


def most_of_others(uses: Mapping[str, int]) -> Callable[[str], int]:
    """Return a function from a user to the largest use among all other users; -1 without others."""
    heaviest = nlargest(2, uses.items(), key=itemgetter(1))
    return lambda user: next((size for other, size in heaviest if other != user), -1)


def most_by_user(uses: Mapping[Claimant, int]) -> dict[str, int]:
    """Return the use of each user's largest unit."""
    found: dict[str, int] = {}
    for share, size in uses.items():
        found[share.user] = max(found.get(share.user, size), size)
    return found


def _give(
    units: Set[Claimant], stages: Sequence[Offer], uses: dict[Claimant, int]
) -> Iterator[int]:
    """Take a user's items one by one; yield what each freed, and 0 if the rest is spared."""
    spares = False
    for queues, take, spared in stages:
        heap = [(-uses[share], share) for share in units & queues.keys()]
        heapify(heap)
        while heap:
            weight, share = heap[0]
            freed, queue = 0, queues[share]
            while queue and not freed and -weight > spared.get(share, -1):
                freed = take(queue.pop())
            if freed:
                uses[share] -= freed
                heapreplace(heap, (weight + freed, share))
                yield freed
            else:
                spares |= bool(queue)
                heappop(heap)
    if spares:
        yield 0


def largest_new(
    new: Claimant,
    spare: int,
    before: Mapping[Claimant, int],
    uses: Mapping[Claimant, int],
    last: Mapping[Claimant, int],
    busy: Mapping[Claimant, int],
) -> int:
    """Return how large a new item may be if the others give for it as in `take_fairly`.

    Args:
        new: the owner of the new item.
        spare: what is available without anybody giving; may be negative.
        before: what each unit uses.
        uses: what each unit uses without cores of which it has several.
        last: what each unit could give of that.
        busy: what cannot be given now.
    """
    has, stays = by_user(before), by_user(busy)
    has.setdefault(new.user, 0)
    rest = uses.get(new, 0) - last.get(new, 0)

    def given(size: int) -> int:
        levels, grown = most_by_user(busy), {**has, new.user: has[new.user] + size}
        levels[new.user] = max(levels.get(new.user, 0), rest + size)
        gives, sparing = Counter[str](), {new.user}
        for share, used in uses.items():
            level = -1 if share == new else levels.get(share.user, -1)
            gone = min(last.get(share, 0), max(0, used - level))
            gives[share.user] += before[share] - used + gone
            sparing |= {share.user} if gone < last.get(share, 0) else set()
        left = {user: grown[user] - gives[user] for user in sparing}
        others = most_of_others({**stays, **left})
        return sum(min(size, max(0, grown[user] - others(user))) for user, size in gives.items())

    sizes = range(1, max(0, spare + sum(before.values())) + 1)
    return bisect_right(sizes, False, key=lambda size: size > spare + given(size))
