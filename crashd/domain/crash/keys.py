"""Ids of crashes, the keys of a listing and of a record, and times as text.

Apart from kinds.py and model.py, because `crashctl list` needs no more than this: enum takes as
long to load as the listing, and the record's class does, too.
"""

SCHEMA = 1
"""Version of crash.json; readers refuse a larger one."""

ID_TEXT = r"[0-9]{8}t[0-9]{6}-[0-9a-f]{8}-[0-9]{1,10}-[a-z][0-9a-z]{7}"
"""`<UTC time>-<boot id, 8>-<pid>-<random>`; the crashed process chooses no part of it. A text,
because compiling it takes a part of the time of `crashctl list`; model.py has it compiled.
"""

BOOT_UNKNOWN = "0" * 32
"""Stands for an unknown boot id, as of a kernel that died: its log does not contain it."""

SHORT_ID_LENGTH = 8

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
    from datetime import UTC, datetime  # a table is printed without it

    seconds, rest = divmod(time_ns, 10**9)
    # isoformat() takes half of strftime()'s time, which is felt in long listings
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest // 1000:06d}Z"
