"""The user who asks for crashes, and which crashes are theirs."""

from typing import Final, NamedTuple


class Viewer(NamedTuple):
    """A user who is not root: the effective ids of the asking process.

    Supplementary groups do not count, as for ptrace(2): a user who wants the crashes of another
    of their groups uses newgrp(1) or sg(1).
    """

    uid: int
    gid: int

    def owns(self, owner_uid: int | None, gid: int | None) -> bool:
        """Return whether this user owns a crash with these `owner_uid` and `gid`.

        A crash has an `owner_uid` only if all its gids are `gid` (record.owner_of).
        """
        return (self.uid, self.gid) == (owner_uid, gid)


NOBODY: Final = Viewer(-1, -1)
"""Owns nothing, because no crash has such ids."""
