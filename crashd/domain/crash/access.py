"""Whether a user may read a file or search a directory, by the kernel's own rules.

Pure: the user is given by the credentials of a crashed process, the file by the results of fstat
and getxattr.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from struct import iter_unpack
from typing import Any

SEARCH, READ = 1, 4
"""Permission bits of one class, as in chmod(2)."""
_ACL_VERSION = b"\2\0\0\0"  # linux/posix_acl_xattr.h
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True, slots=True)
class Credentials:
    """A crashed process's user, group and groups, in the initial user namespace."""

    uid: int | None
    """None if unknown: then only files that everybody may open can be opened."""
    gid: int | None = None
    groups: frozenset[int] = frozenset()
    """Supplementary groups."""
    overrides: bool = False
    """The process is root's and has a capability that overrides permissions."""

    def to_json(self) -> dict[str, Any]:
        """Build the object that `from_json` takes."""
        groups = sorted(self.groups)
        return {"uid": self.uid, "gid": self.gid, "groups": groups, "overrides": self.overrides}

    @classmethod
    def from_json(cls, doc: Mapping[str, Any]) -> "Credentials":
        """Take the object that `to_json` built."""
        return cls(doc["uid"], doc["gid"], frozenset(doc["groups"]), bool(doc["overrides"]))


def is_permitted(
    who: Credentials, mode: int, owner: int, group: int, acl: bytes | None, wanted: int
) -> bool:
    """Return whether `who` has the permissions `wanted` (READ, SEARCH) on a file.

    `acl` is the file's system.posix_acl_access, or None. Source: acl(5), "Access check
        algorithm"; fs/posix_acl.c, posix_acl_permission().
    """
    if who.overrides:
        return True
    # Linux ignores a list with an empty mask (fs/namei.c, acl_permission_check())
    entries = _parse_acl(acl) if acl is not None and mode & 0o070 else _plain_entries(mode)
    mask = next((bits for tag, bits, _ in entries if tag == _MASK), 7)
    if who.uid == owner:
        return _has([bits for tag, bits, _ in entries if tag == _USER_OBJ], wanted, 7)
    if named := [bits for tag, bits, id_ in entries if tag == _USER and id_ == who.uid]:
        return _has(named, wanted, mask)
    groups = who.groups | ({who.gid} if who.gid is not None else frozenset())
    if own := [
        bits
        for tag, bits, id_ in entries
        if (tag == _GROUP_OBJ and group in groups) or (tag == _GROUP and id_ in groups)
    ]:
        return _has(own, wanted, mask)
    return _has([bits for tag, bits, _ in entries if tag == _OTHER], wanted, 7)


def _has(found: list[int], wanted: int, mask: int) -> bool:
    return any(bits & mask & wanted == wanted for bits in found)


def _plain_entries(mode: int) -> list[tuple[int, int, int]]:
    return [(_USER_OBJ, mode >> 6 & 7, 0), (_GROUP_OBJ, mode >> 3 & 7, 0), (_OTHER, mode & 7, 0)]


def _parse_acl(raw: bytes) -> list[tuple[int, int, int]]:
    """Parse tag, permissions and id of each entry; a malformed list permits nothing."""
    if raw[:4] != _ACL_VERSION or len(raw) % 8 != 4:
        return []
    return list(iter_unpack("<HHI", raw[4:]))
