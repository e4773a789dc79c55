"""Decides for which crashes hooks run: budgets per hour, so that no loop or user silences others.

An owner is a user, or a user in a container. Each owner has a budget, and each kind of crash a
smaller one. Repeats can use only half of the owner's budget, so that the first crash of a new kind
is reported while the owner has any budget left; the budget also bounds endless new kinds. All
owners together have OWNERS_MAX times the budget of one. System users have as much again for
themselves, and crashes of the kernel are always reported. An owner without any report in the last
hour still gets the first one when the common budget is used up: a flood by many owners does not
silence another one.

Pure: the clock is passed in.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

HOUR_SECONDS: Final = 3600.0
OWNERS_MAX: Final = 10
"""How many owners can use up their whole budgets in an hour."""
SYSTEM_UID_MAX: Final = 999  # SYS_UID_MAX of login.defs(5)


@dataclass(frozen=True, slots=True)
class AlertRates:
    """How many crashes are reported within an hour."""

    per_owner: int = 60
    per_signature: int = 10


@dataclass(frozen=True, slots=True)
class _Told:
    time: float
    owner: str
    kind: str
    system: bool


class AlertBudget:
    """The crashes reported within the last hour."""

    def __init__(self) -> None:
        self._told: deque[_Told] = deque()
        self._of_owner: Counter[str] = Counter()
        self._of_kind: Counter[tuple[str, str]] = Counter()
        self._of_class: Counter[bool] = Counter()

    def take(self, rates: AlertRates, owner: str, kind: str, now: float) -> bool:
        """Return whether a crash may be reported, and count it if so.

        `owner` is a user id, followed by `@` and the container if there is one.
        """
        self._forget(now)
        system = owner.isdigit() and int(owner) <= SYSTEM_UID_MAX
        repeats, used = self._of_kind[owner, kind], self._of_owner[owner]
        # rounded up: with a budget of one, a repeat may use it
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
