"""Names of functions in a form that stays the same from build to build. Pure."""

import re

_BRACKET_SUFFIX = re.compile(r"( \[[^\]]*\])+$")
_GO_SHAPE = re.compile(r"\[(go\.shape\.[^\]]*|\.\.\.)\]")
"""Type arguments of a generic function; a stripped Go program has only their place."""
_OPERATOR = re.compile(r"\boperator\b")
_CALL_OPERATOR = re.compile(r"\boperator\(\)$")
_LAMBDA = re.compile(
    r"(\([^()]*\))?( const)?::"
    r"(\{lambda\([^{}]*\)(#\d+)?\}|\$_\d+|'lambda\d*'\([^()]*\)|<lambda\([^<>]*\)>)"
)
"""A lambda in a function, as gcc and clang write it: its parameters and number are not stable."""
_NUMBERS = re.compile(r"#\d+")
_SUFFIX = re.compile(r"(\.(constprop|isra|part|cold|lto_priv|abi0|abiinternal|llvm|\d+))+(\.\d+)*$")


def without_suffix(name: str) -> str:
    """Remove the suffix that a compiler adds to a copy of a function: `.constprop.0`, `.cold`."""
    return _SUFFIX.sub("", name)


def plain_name(function: str) -> str:
    """Reduce a function's name to the stable part: without parameters, template arguments and
    compiler suffixes.

    `app::Store<int>::at(unsigned long) const [.cold]` becomes `app::Store::at`.
    """
    name = _GO_SHAPE.sub("", _BRACKET_SUFFIX.sub("", function))
    name = _LAMBDA.sub("::{lambda}", name)
    name = re.sub(r"( const| volatile| &&?| noexcept)+$", "", name)
    if name.endswith(")") and not _CALL_OPERATOR.search(name):
        name = _without_last_group(name)
    name = without_suffix(_without_angles(name))
    if not _OPERATOR.search(name) and "{" not in name:
        name = _without_return_type(name)
    return _NUMBERS.sub("", name) or function


def _without_last_group(name: str) -> str:
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] == ")") - (name[at] == "(")
        if depth == 0:
            return name[:at] or name
    return name


def _without_return_type(name: str) -> str:
    """Remove the return type, which precedes the name of a template's instance."""
    depth = start = 0
    for at, letter in enumerate(name):
        depth += (letter in "(<") - (letter in ")>")
        if letter == " " and depth == 0:
            start = at + 1
    return name[start:] or name


def _without_angles(name: str) -> str:
    """Remove template arguments; leave `operator<` and names that begin with `<` as they are."""
    if _OPERATOR.search(name) or name.startswith("<"):
        return name
    out: list[str] = []
    depth = 0
    for letter in name:
        depth += letter == "<"
        if not depth:
            out.append(letter)
        depth -= letter == ">" and depth > 0
    return "".join(out).replace("::::", "::").removesuffix("::")
