"""Taking from many what is short of one thing: from the user who has most, and of that user from
the unit that has most, again and again.

The uid comes first: as many units, sessions and containers as a user can name share one part.
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
    """Whose something is."""

    user: str
    unit: str


class Stage(NamedTuple):
    """What is taken of a user before anything of the next stage."""

    queues: Mapping[Claimant, list[int]]
    """What each has to give, the next at the end; used up."""
    take: Callable[[int], int]
    """Tells what taking one freed, 0 when it did not."""
    spared: Mapping[Claimant, int] = MappingProxyType({})
    """Units from which nothing is taken once they use no more than so much."""


_NOBODY: Final[Mapping[str, int]] = MappingProxyType({})


def take_fairly(
    stages: Sequence[Stage],
    uses: dict[Claimant, int],
    short: int,
    spared: Mapping[str, int] = _NOBODY,
) -> int:
    """Take from whoever uses most, until nothing is short; return what still is.

    Where all that a user has is spared for the sake of the same user's other units, nobody who uses
    less pays for it.

    Args:
        stages: what there is to take.
        uses: what each uses; what is taken is gone from it.
        short: how much is wanted.
        spared: users from whom nothing is taken once they use no more than so much.

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
    """Add up what all units of each user use."""
    found: dict[str, int] = {}
    for share, size in uses.items():
        found[share.user] = found.get(share.user, 0) + size
    return found


def most_of_others(uses: Mapping[str, int]) -> Callable[[str], int]:
    """Give a function that tells what the heaviest of all others than one user uses; -1: nobody."""
    heaviest = nlargest(2, uses.items(), key=itemgetter(1))
    return lambda user: next((size for other, size in heaviest if other != user), -1)


def most_by_user(uses: Mapping[Claimant, int]) -> dict[str, int]:
    """Find what the unit of each user uses that uses most."""
    found: dict[str, int] = {}
    for share, size in uses.items():
        found[share.user] = max(found.get(share.user, size), size)
    return found


def _give(
    units: Set[Claimant], stages: Sequence[Stage], uses: dict[Claimant, int]
) -> Iterator[int]:
    """Take one after another of a user's; yield what each freed, and 0 for what is spared."""
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
    """Return how large something new may be, for which the others give as `take_fairly` takes.

    Args:
        new: whose it is.
        spare: what needs nobody to give anything; may be negative.
        before: what each uses.
        uses: what each uses without that of which it has several.
        last: what each could give of that.
        busy: what nobody can give now.

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
