"""Names of users and groups in a MATCH: `uid=alice` is `uid=1000`, by this host's databases."""

from __future__ import annotations

from crashd.errors import UsageError

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Iterable

_USERS = frozenset({"uid", "owner_uid"})
_GROUPS = frozenset({"gid", "owner_gid"})


def numbered(terms: Iterable[str]) -> list[str]:
    """Put numbers for names of users and groups.

    Raises:
        UsageError: there is no such user or group.
    """
    return [_number(term) for term in terms]


def _number(term: str) -> str:
    field, _, name = term.partition("=")
    key = field.lower()
    key = key.removeprefix("coredump_") if key.startswith("c") else key.removeprefix("_")
    if key not in _USERS | _GROUPS or not name or name[0] in "0123456789-":
        return term
    is_user = key in _USERS
    import grp
    import pwd

    try:
        if is_user:
            return f"{field}={pwd.getpwnam(name).pw_uid}"
        return f"{field}={grp.getgrnam(name).gr_gid}"
    except (KeyError, ValueError) as e:
        raise UsageError(f"{term}: no {'user' if is_user else 'group'} {name!r}") from e
