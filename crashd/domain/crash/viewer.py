"""Who asks for crashes, and which of them are theirs."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Viewer:
    """A user who is not root: the effective ids of the process that asks.

    The process's groups beside its gid do not count, as they do not for ptrace(2): whoever wants
    the crashes of another of their groups asks by newgrp(1) or sg(1).
    """

    uid: int
    gid: int

    def owns(self, owner_uid: int | None, gid: int | None) -> bool:
        """Return whether a crash is this user's, by its `owner_uid` and `gid`.

        A crash has an `owner_uid` only where all its gids are `gid` (record.owner_of).
        """
        return (self.uid, self.gid) == (owner_uid, gid)


NOBODY: Final = Viewer(-1, -1)
"""Owns nothing: no crash has such ids."""
