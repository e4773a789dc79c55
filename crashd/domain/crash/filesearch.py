"""Where to look for the files of a crash's modules, and with which credentials to open them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crashd.domain.crash.access import Credentials, crash_credentials
from crashd.domain.crash.cgroup import is_in_roots_container
from crashd.domain.crash.model import Crash
from crashd.domain.crash.mounts import find_binds
from crashd.domain.elf.modules import file_roots

_ENCODING = "utf-8", "surrogateescape"


@dataclass(frozen=True, slots=True)
class Root:
    """A directory of the host that may be the root of the process's paths."""

    path: bytes
    entered: bool = False
    """Whether root put the process there, so that it never searched the directories above."""
    below: bytes = b""
    """Where the process has it mounted; empty for a root of all its paths."""


@dataclass(frozen=True, slots=True)
class FileSearch:
    """All that the search for a crash's files needs."""

    credentials: Credentials
    roots: tuple[Root, ...] = (Root(b"/"),)
    """Best first."""
    build_id_dirs: tuple[bytes, ...] = field(default=())
    """Directories of the host with files by build-id, besides each root's /usr/lib/debug."""
    kept: tuple[bytes, ...] = ()
    """The crash's entry, and those of others like it, which may hold files kept with them."""

    def to_json(self) -> dict[str, Any]:
        """Build the object that `from_json` takes."""
        return {
            "credentials": self.credentials.to_json(),
            "roots": [
                [root.path.decode(*_ENCODING), root.entered, root.below.decode(*_ENCODING)]
                for root in self.roots
            ],
            "build_id_dirs": [path.decode(*_ENCODING) for path in self.build_id_dirs],
            "kept": [path.decode(*_ENCODING) for path in self.kept],
        }

    @classmethod
    def from_json(cls, doc: Mapping[str, Any]) -> "FileSearch":
        """Take the object that `to_json` built."""
        return cls(
            Credentials.from_json(doc["credentials"]),
            tuple(
                Root(path.encode(*_ENCODING), bool(entered), below.encode(*_ENCODING))
                for path, entered, below in doc["roots"]
            ),
            tuple(path.encode(*_ENCODING) for path in doc["build_id_dirs"]),
            tuple(path.encode(*_ENCODING) for path in doc["kept"]),
        )


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
