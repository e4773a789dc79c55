"""Plans the search for the files of a crash's modules, from its record. The worker in the sandbox
takes the plan and does not load this, which would be a tenth of a small core's analysis.
"""

from collections.abc import Sequence
from typing import Final

from crashd.domain.crash.access import Credentials
from crashd.domain.crash.cgroup import is_in_roots_container
from crashd.domain.crash.filesearch import FileSearch, Root
from crashd.domain.crash.model import Crash
from crashd.domain.crash.mounts import find_binds
from crashd.domain.crash.procfs import parse_status
from crashd.domain.elf.modules import file_roots

_OVERFLOW_GID: Final = 65534
"""Shown for an id without a mapping in the reader's namespace."""
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2  # linux/capability.h


def plan_search(
    crash: Crash,
    build_id_dirs: Sequence[bytes] = (),
    kept: Sequence[bytes] = (),
    host_mounts: bytes = b"",
) -> FileSearch:
    """Plan the search for the files of a crash, from its record and the host's own mountinfo.
    `kept` are the directories of its entry and of others like it.

    Any user can put a process into its own namespace and choose the names of its root and of the
    layers below it. So these paths are searched from the host's root on. The paths of a container
    that root's runtime created can be trusted, and the process never searched the host's
    directories above them.
    """
    entered = is_in_roots_container(crash.cgroup)
    roots = file_roots(crash.mountinfo, crash.root)
    return FileSearch(
        crash_credentials(crash.uid, crash.gid, crash.status),
        (
            *(
                Root(mount.source, entered, mount.point)
                for mount in find_binds(crash.mountinfo or b"", host_mounts)
            ),
            *(Root(path, entered and path != b"/") for path in roots),
        ),
        tuple(build_id_dirs),
        tuple(kept),
    )


def crash_credentials(uid: int | None, gid: int | None, status: bytes | None) -> Credentials:
    """Build the credentials of a crashed process from its ids and its /proc/PID/status.

    A record without `status` has no groups and no capability.
    """
    if uid is None:
        return Credentials(None)
    known = parse_status(status or b"")
    powers = known.effective & (_CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH)
    groups = known.groups - {_OVERFLOW_GID}
    # the capabilities of a user's setuid program belong to the program, not to the user
    return Credentials(uid, gid, groups, overrides=uid == 0 and powers != 0)
