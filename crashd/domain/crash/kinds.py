"""What a crash is called: kinds, states, ids and the keys of a listing.

Apart from model.py, which has the record itself, because `crashctl list` needs no more than this,
and the record's class takes as long to load as the listing.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import assert_never

SCHEMA = 1
"""Version of crash.json; readers refuse a larger one."""

ID_TEXT = r"[0-9]{8}t[0-9]{6}-[0-9a-f]{8}-[0-9]{1,10}-[a-z][0-9a-z]{7}"
"""`<UTC time>-<boot id, 8>-<pid>-<random>`; the crashed process chooses no part of it. A text,
because compiling it takes a part of the time of `crashctl list`; model.py has it compiled.
"""

BOOT_UNKNOWN = "0" * 32
"""Stands for an unknown boot id, as of a kernel that died: its log does not contain it."""

SHORT_ID_LENGTH = 8


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


_LIST_KEYS_TEXT = """
id kind state time boot_id hostname pid tid uid gid signal signal_name si_code fault_address
comm exe cmdline cwd unit slice container_id build_id capture core signature title
explanation count_of_signature pinned evicted kernel
"""
LIST_KEYS = tuple(_LIST_KEYS_TEXT.split())
"""Keys of `crashctl list --json`, in order; `info --json` has these and more."""

_RECORD_KEYS_TEXT = """
schema id kind state time time_ns boot_id token sequence boottime_ns pid tid ns_pid uid gid dumpable
owner_uid rlimit_core signal si_code sender_pid sender_uid unit user_unit slice session cgroup
container_id container_runtime pod_uid pod mount_ns user_ns build_id package_name package_version
package_source signature title explanation
analysis pinned evicted kernel signal_name fault_address hostname comm thread_comm exe cwd root
nodename maps limits status mountinfo open_fds argv environ cmdline warnings threads frames log
report capture core
"""
RECORD_KEYS = frozenset(_RECORD_KEYS_TEXT.split())
"""Keys of every crash.json that this version writes; `auxv` may have only its exact bytes."""
CORE_NAME_TEXT = r"[a-z][a-z0-9.]{0,30}"
"""A core is a plain file in the crash's entry: its name cannot lead elsewhere."""


def time_text(time_ns: int) -> str:
    """Format ns since the epoch as ISO 8601 UTC with microseconds."""
    seconds, rest = divmod(time_ns, 10**9)
    # isoformat() takes half of strftime()'s time, which is felt in long listings
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest // 1000:06d}Z"
