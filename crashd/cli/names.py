"""Names of users and groups in a MATCH: `uid=alice` is `uid=1000`, by this host's databases."""

import re
from collections.abc import Iterable

from crashd.errors import UsageError

_NAMED = re.compile(r"((?:COREDUMP_|_)?(?:OWNER_)?([UG])ID)=([^0-9-].*)", re.IGNORECASE | re.DOTALL)


def numbered(terms: Iterable[str]) -> list[str]:
    """Put numbers for names of users and groups.

    Raises:
        UsageError: there is no such user or group.
    """
    return [_number(term) for term in terms]


def _number(term: str) -> str:
    match = _NAMED.fullmatch(term)
    if match is None:
        return term
    import grp
    import pwd

    field, kind, name = match.groups()
    try:
        if kind in "uU":
            return f"{field}={pwd.getpwnam(name).pw_uid}"
        return f"{field}={grp.getgrnam(name).gr_gid}"
    except (KeyError, ValueError) as e:
        raise UsageError(f"{term}: no {'user' if kind in 'uU' else 'group'} {name!r}") from e
