"""Taking from many what is short of one thing: from whoever has most, again and again."""

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heapreplace
from types import MappingProxyType
from typing import Final

_NOBODY: Final[Mapping[str, int]] = MappingProxyType({})


def take_fairly(
    queues: Mapping[str, list[int]],
    uses: dict[str, int],
    short: int,
    take: Callable[[int], int],
    spared: Mapping[str, int] = _NOBODY,
) -> int:
    """Take from whoever uses most, until nothing is short; tell what still is.

    Args:
        queues: what each owner has to give, the next at the end; used up.
        uses: what each owner uses; what is taken is gone from it.
        short: how much is wanted.
        take: tells what taking one freed, 0 when it did not.
        spared: owners from whom nothing is taken once they use no more than so much.

    """
    heap = [(-uses[owner], owner) for owner in queues]
    heapify(heap)
    while heap and short > 0:
        weight, owner = heap[0]
        if -weight <= spared.get(owner, -1):
            heappop(heap)
            continue
        queue = queues[owner]
        freed = 0
        while queue and not freed:
            freed = take(queue.pop())
        short -= freed
        uses[owner] = -weight - freed
        if queue:
            heapreplace(heap, (weight + freed, owner))
        else:
            heappop(heap)
    return short
