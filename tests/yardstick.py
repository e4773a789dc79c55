"""How fast this machine is just now, for tests that bound what something costs."""

import random
import time

WORK_SECONDS = 0.009
"""What `_work` takes where the bounds were measured, of CPU."""


def slowness() -> float:
    """Return how many times as long this machine takes as the one of the bounds; at least 1.

    Shared processors are slower by half in some hours, CPU time included: a bound of seconds would
    then judge the hour. To be asked right after what is measured.
    """
    return max(1.0, min(_work() for _ in range(7)) / WORK_SECONDS)


def _work() -> float:
    begin = time.thread_time()
    dice = random.Random(1)
    pairs = sorted((dice.random(), f"{number}") for number in range(10_000))
    found: dict[int, list[str]] = {}
    for value, name in pairs:
        found.setdefault(int(value * 1000), []).append(name)
    return time.thread_time() - begin
