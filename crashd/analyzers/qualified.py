"""Qualified names of inlined C++ functions. drgn's frames have only their bare names (`push`),
because an inlined function has no symbol; but debug information keeps the linkage names of all
functions that are visible outside of their file, among its strings.

A method's class is the type of `this`; the class's own place is in the linkage names, if they agree
on one. Any other function is looked up by the only qualified name that ends in its own, if that
function has the same parameters, or the names are known to be complete. A name is never guessed:
where candidates differ, it stays bare.
"""

import re
from collections.abc import Iterator
from typing import Any

from crashd.analyzers.demangle import Demangler
from crashd.domain.cause.names import plain_name

FILE_BYTES_MAX = 64 << 20
"""Size of a file with debug information in which functions are looked up by their names."""
NAMES_MAX = 64
"""Different linkage names that are looked at for one function."""
_HITS_MAX = 4096
_LINKAGE_MAX = 1024
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_CLOSURE = "__closure"


def is_closures(frame: Any) -> bool:
    """Return whether an inlined `operator()` is a lambda's, as gcc describes it."""
    return _CLOSURE in frame.locals()


def class_of(frame: Any) -> str | None:
    """Return the name of the class of an inlined method, without its template arguments."""
    if "this" not in frame.locals():
        return None
    kind = frame["this"].type_
    while kind.kind.name in ("POINTER", "TYPEDEF"):
        kind = kind.type
    tag = getattr(kind, "tag", None)
    name = plain_name(tag) if tag else ""
    return name if _IDENTIFIER.fullmatch(name) else None


def with_class(name: str, owner: str, strings: bytes, demangler: Demangler) -> str:
    """Return a method's name behind that of its class; the class's own name is qualified if the
    linkage names of the method, or else of the class, agree on where it is.
    """
    method = plain_name(name)
    for part in (method, owner):
        if not _IDENTIFIER.fullmatch(part):
            continue  # an operator or a destructor
        scopes = set[str]()
        for plain in _linkage_names(part, strings, demangler):
            scope, _, last = plain.rpartition("::")
            if (part is owner or last == method) and f"::{scope}".endswith(f"::{owner}"):
                scopes.add(scope)
        if scopes:
            return f"{scopes.pop() if len(scopes) == 1 else owner}::{name}"
    return f"{owner}::{name}"


def candidates(name: str, strings: bytes, demangler: Demangler) -> set[str]:
    """Return the qualified names of functions that have this bare name."""
    return {
        plain
        for plain in _linkage_names(name.removeprefix("~"), strings, demangler)
        if f"::{plain}".endswith(f"::{name}")
    }


def names_all(strings: bytes) -> bool:
    """Return whether debug information has the linkage names of all C++ functions: clang's has,
    gcc's lacks those that are not visible outside of their file.
    """
    return b"clang version" in strings and b"GNU C" not in strings


def has_parameters(frame: Any, function: Any) -> bool:
    """Return whether a function has parameters, and the frame has them all, of the same types."""
    parameters, known = function.type_.parameters, frame.locals()
    for parameter in parameters:
        if parameter.name not in known:
            return False
        if str(frame[parameter.name].type_) != str(parameter.type):
            return False
    return bool(parameters)


def _linkage_names(part: str, strings: bytes, demangler: Demangler) -> Iterator[str]:
    """Yield the plain names that contain an identifier; none if there are too many."""
    wanted, at, seen = f"{len(part)}{part}".encode(), 0, set[bytes]()
    for _ in range(_HITS_MAX):
        at = strings.find(wanted, at)
        if at < 0:
            break
        start = strings.rfind(b"\0", max(0, at - _LINKAGE_MAX), at) + 1
        end = strings.find(b"\0", at, at + _LINKAGE_MAX)
        if strings.startswith(b"_Z", start) and at - start < _LINKAGE_MAX and end > 0:
            seen.add(strings[start:end])
        at += len(wanted)
    else:
        return
    names = {plain_name(demangler.name(raw.decode("ascii", "replace"))) for raw in seen}
    if len(names) <= NAMES_MAX:
        yield from names
