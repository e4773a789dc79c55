"""Whether a crash has become more frequent: by hosts that have it, not by crashes. Pure.

One host in a crash loop makes any number of crashes, and a version on more hosts makes more of all.
So the share of hosts that have a signature is compared with the share before.
"""

import math
from dataclasses import dataclass
from typing import Final

HOSTS_MIN: Final = 3
"""Fewer hosts prove nothing."""
RATIO_MIN: Final = 2.0
DEVIATIONS_MIN: Final = 3.0
"""Standard deviations: by chance, one signature in 700 looks so."""


@dataclass(frozen=True, slots=True)
class Share:
    """The hosts that have a signature, among those that were seen."""

    hosts: int
    of: int

    @property
    def rate(self) -> float:
        """The share; 0 without any host."""
        return min(1.0, self.hosts / self.of) if self.of > 0 else 0.0


def is_more_frequent(now: Share, before: Share) -> bool:
    """Return whether a larger share of the hosts has it than before, and not by chance.

    The test is that of two proportions with a pooled variance.
    """
    if now.hosts < HOSTS_MIN or now.rate <= 0 or now.rate < RATIO_MIN * before.rate:
        return False
    if before.of <= 0:
        return False  # nothing to compare with
    pooled = (now.hosts + before.hosts) / (now.of + before.of)
    pooled = min(max(pooled, 1e-9), 1 - 1e-9)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / now.of + 1 / before.of))
    return (now.rate - before.rate) / deviation >= DEVIATIONS_MIN
