"""Names of lambdas that a compiler inlined; debug information calls each `operator()`. Pure.

What called such a lambda has its type as a template argument, which names the function that holds
it: `std::__invoke<work()::<lambda()> >`, `std::thread::_State_impl<… work::{lambda()#1} …>`,
`std::__thread_proxy<… work()::$_0 …>`.
"""

import re
from typing import Any

from crashd.domain.cause.names import plain_name

LAMBDA = "{lambda}"
_CALLERS = 8
_NAME = "operator()"
_CLANGS = "(lambda at "
"""As clang names a type that has no name, by its place."""
_OWNER = re.compile(
    r"(?P<owner>[A-Za-z_][\w:~]*)(?:\([^()<>]*\))?(?: const)?::"
    r"(?:<lambda\([^()<>]*\)>|\{lambda\([^(){}]*\)(?:#\d+)?\}|\$_\d+|'lambda\d*'\([^()]*\))"
)


def name_lambdas(frames: list[dict[str, Any]]) -> None:
    """Give inlined lambdas the name of the function that holds them."""
    for index, frame in enumerate(frames):
        known = frame["function"] == f"{LAMBDA}::{_NAME}"
        if not known and (frame["function"] != _NAME or not frame["inline"]):
            continue
        for caller in frames[index + 1 : index + 1 + _CALLERS]:
            found = _OWNER.search(caller["function"] or "")
            if found is not None:
                frame["function"] = f"{found['owner']}::{LAMBDA}::{_NAME}"
                break
            if caller["function"] and "<" not in caller["function"]:
                clangs = not caller["inline"] and _CLANGS in (frames[index + 1]["function"] or "")
                if clangs or known:
                    owner = plain_name(caller["function"])
                    frame["function"] = f"{owner}::{LAMBDA}::{_NAME}"
                break  # the program's own caller
