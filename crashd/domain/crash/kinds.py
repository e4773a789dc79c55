"""What may crash, and how complete a crash may be.

Apart from model.py, which has the record itself, because its class takes long to load.
"""

from enum import StrEnum

from crashd.records import assert_never


class Kind(StrEnum):
    """What crashed."""

    PROCESS = "process"
    KERNEL = "kernel"


class State(StrEnum):
    """How complete a crash is (DESIGN section 8)."""

    CAPTURING = "capturing"
    COMPLETE = "complete"
    TRUNCATED = "truncated"
    METADATA_ONLY = "metadata-only"
    LOST = "lost"
    INCOMPLETE = "incomplete"
    EVICTED = "evicted"
    MISSING = "missing"

    @property
    def is_final(self) -> bool:
        """Whether nobody is writing the crash any more."""
        return self is not State.CAPTURING

    @property
    def has_core(self) -> bool:
        """Whether there is a core, or a kernel's dump, though perhaps not all of it."""
        match self:
            case State.COMPLETE | State.TRUNCATED | State.INCOMPLETE:
                return True
            case State.CAPTURING | State.METADATA_ONLY | State.LOST:
                return False
            case State.EVICTED | State.MISSING:
                return False
            case _:
                assert_never(self)

    @property
    def is_gone(self) -> bool:
        """Whether there was a core, and was deleted since."""
        match self:
            case State.EVICTED | State.MISSING:
                return True
            case State.CAPTURING | State.COMPLETE | State.TRUNCATED | State.INCOMPLETE:
                return False
            case State.METADATA_ONLY | State.LOST:
                return False
            case _:
                assert_never(self)

    @property
    def takes_core(self) -> bool:
        """Whether a core that comes in later, by the spool, is still this crash's."""
        match self:
            case State.CAPTURING | State.LOST:
                return True
            case State.COMPLETE | State.TRUNCATED | State.INCOMPLETE | State.METADATA_ONLY:
                return False
            case State.EVICTED | State.MISSING:
                return False
            case _:
                assert_never(self)

    @property
    def kinds(self) -> frozenset[Kind]:
        """What may have crashed, of a crash in this state."""
        match self:
            case State.TRUNCATED | State.LOST:
                return frozenset({Kind.PROCESS})
            case State.INCOMPLETE | State.MISSING:
                return frozenset({Kind.KERNEL})
            case State.CAPTURING | State.COMPLETE | State.METADATA_ONLY | State.EVICTED:
                return frozenset(Kind)
            case _:
                assert_never(self)
