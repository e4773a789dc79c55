"""For which crashes hooks are run: budgets within an hour, so that no loop or user mutes others.

Each kind of crash (of one user or container) has a few; repeats have half of what their owner has,
so that the first of a kind goes out as long as the owner has anything left, which bounds endless
new kinds. All owners together have OWNERS_MAX times that; system users have as much for themselves,
and what the kernel tells of itself always goes out. Where all of it is used, a user who had
nothing still gets the first one: a flood by many does not mute one.

Pure: the clock is passed in.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

HOUR_SECONDS: Final = 3600.0
OWNERS_MAX: Final = 10
"""How many owners may use up their budgets in an hour."""
SYSTEM_UID_MAX: Final = 999  # SYS_UID_MAX of login.defs(5)


@dataclass(frozen=True, slots=True)
class AlertRates:
    """For how many crashes hooks run within an hour."""

    per_owner: int = 60
    per_signature: int = 10


@dataclass(frozen=True, slots=True)
class _Told:
    time: float
    owner: str
    kind: str
    system: bool


class AlertBudget:
    """What was told within the last hour."""

    def __init__(self) -> None:
        self._told: deque[_Told] = deque()
        self._of_owner: Counter[str] = Counter()
        self._of_kind: Counter[tuple[str, str]] = Counter()
        self._of_class: Counter[bool] = Counter()

    def take(self, rates: AlertRates, owner: str, kind: str, now: float) -> bool:
        """Return whether a crash may be notified, and count it if so.

        `owner` is a user id, with `@` and a container where there is one.
        """
        self._forget(now)
        system = owner.isdigit() and int(owner) <= SYSTEM_UID_MAX
        repeats, used = self._of_kind[owner, kind], self._of_owner[owner]
        # rounded up: of a budget of one the only one may be a repeat
        own = rates.per_owner if not repeats else -(-rates.per_owner // 2)
        if used >= own or repeats >= rates.per_signature:
            return False
        most = OWNERS_MAX * rates.per_owner
        if self._of_class[system] >= (most if used else 2 * most):
            return False
        self._told.append(_Told(now, owner, kind, system))
        self._of_owner[owner] += 1
        self._of_kind[owner, kind] += 1
        self._of_class[system] += 1
        return True

    def _forget(self, now: float) -> None:
        while self._told and now - self._told[0].time > HOUR_SECONDS:
            told = self._told.popleft()
            self._of_owner -= Counter([told.owner])
            self._of_kind -= Counter([(told.owner, told.kind)])
            self._of_class -= Counter([told.system])
