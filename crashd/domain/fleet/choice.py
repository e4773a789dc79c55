"""Which cores are sent to the fleet's object storage. Pure."""

from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import StrEnum

from crashd.domain.crash.model import Crash, Disposition, Kind
from crashd.domain.fleet.lines import CoreReason

_UNDECIDED_NS = 600 * 10**9
"""After this time a core is judged without its signature."""


class Cores(StrEnum):
    """How much of a process's core is sent."""

    NONE = "none"
    MINI = "mini"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Choice:
    """The rules of [fleet], and what the fleet has."""

    cores: Cores
    per_signature: int
    kernel_dumps: bool
    analyses: bool
    """Whether a signature will come."""
    enough: Set[str]
    """Signatures of which the fleet has enough cores."""


def choose(
    crash: Crash, rules: Choice, sent_of: Callable[[str], int], *, wanted: bool, now_ns: int
) -> CoreReason | bool | None:
    """Decide what becomes of a crash's core: True to send it, the reason to keep it, or None as
    long as its signature is to come.

    Args:
        crash: the crash.
        rules: how to decide.
        sent_of: says how many cores of a signature this host has sent.
        wanted: the fleet asks for this one: numbers do not matter.
        now_ns: the wall clock.

    """
    if not crash.state.has_core:
        return CoreReason.NO_CORE
    if crash.kind is Kind.KERNEL:
        kernel = crash.kernel or {}
        if not kernel.get("path") or not kernel.get("dump"):  # a split dump has several files
            return CoreReason.NO_CORE
        if not rules.kernel_dumps:
            return CoreReason.POLICY
    elif crash.core.path is None:
        return CoreReason.NO_CORE
    elif rules.cores is Cores.NONE:
        return CoreReason.POLICY
    if wanted:
        return True
    if crash.signature is None:
        coming = rules.analyses and crash.analysis is None and crash.kind is Kind.PROCESS
        young = -_UNDECIDED_NS < now_ns - crash.time_ns < _UNDECIDED_NS
        return None if coming and young else True
    if crash.signature in rules.enough or sent_of(crash.signature) >= rules.per_signature:
        return CoreReason.ENOUGH
    return True


def is_cut(crash: Crash, rules: Choice) -> bool:
    """Return whether a mini core is made of a crash's core before it is sent."""
    whole = crash.capture.disposition is Disposition.FULL
    return crash.kind is Kind.PROCESS and rules.cores is Cores.MINI and whole
