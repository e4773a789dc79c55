"""Where to look for the files of a crash's modules, and with which credentials to open them. The
plan is made by crashd.domain.crash.searchplan.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crashd.domain.crash.access import Credentials

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
