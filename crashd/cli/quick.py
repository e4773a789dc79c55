"""The plain calls of `list`, `info` and `top`, understood without argparse.

Loading argparse and building the parser takes as long as reading and printing a listing. What is
not plain here (an unknown word, a value that is wrong, options written together) is left to
arguments.py, which also has every message; a test compares the two.
"""

from __future__ import annotations

import os

from crashd.cli.verbs import ALIASES, DEFAULT_VERB, VERBS, Verb

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_COMMON = {
    "-q": ("quiet", True),
    "--quiet": ("quiet", True),
    "--no-pager": ("no_pager", True),
    "--no-legend": ("no_legend", True),
    "--debug": ("debug", True),
    "--fleet": ("fleet", ""),
}
_FLAGS: dict[str, dict[str, tuple[str, Any]]] = {
    "list": {
        **_COMMON,
        "-1": ("limit", 1),
        "-r": ("reverse", True),
        "--reverse": ("reverse", True),
        "--all": ("all", True),
    },
    "info": {
        **_COMMON,
        "-1": ("newest", True),
        "-r": ("reverse", True),
        "--reverse": ("reverse", True),
        "-a": ("all", True),
        "--all": ("all", True),
    },
    "top": _COMMON,
}
_ROOT = {"--root": "root", "--fleet": "fleet", "--color": "color"}
_PLACE = {**_ROOT, "-D": "directory", "--directory": "directory", "--file": "file"}
_SELECTION = {
    **_PLACE,
    "-S": "since",
    "--since": "since",
    "-U": "until",
    "--until": "until",
    "-n": "limit",
    "--lines": "limit",
}
_VALUES = {
    "list": {
        **_SELECTION,
        "-F": "field",
        "--field": "field",
        "--signature": "signature",
    },
    "info": _SELECTION,
    "top": {**_ROOT, "-S": "since", "--since": "since", "-n": "limit", "--lines": "limit"},
}
_TIMES = frozenset({"since", "until"})
_DEFAULTS: dict[str, dict[str, Any]] = {
    "list": {
        **dict.fromkeys(("since", "until", "kind", "signature", "limit", "field")),
        **dict.fromkeys(("directory", "file")),
        **dict.fromkeys(("reverse", "all"), False),
    },
    "info": {
        **dict.fromkeys(("since", "until", "limit", "directory", "file")),
        **dict.fromkeys(("newest", "reverse", "all"), False),
    },
    "top": {**dict.fromkeys(("since", "new_since", "by", "kind")), "limit": 20},
}
_COLORS = frozenset({"auto", "always", "never"})
_JSON_FORMS = {"short": "short", "pretty": "pretty", "off": False}


def parse_quickly(argv: Sequence[str]) -> tuple[Verb, Any] | None:
    """Return what arguments.parse returns for `argv`; None if that has to be asked."""
    words: list[tuple[str | None, str]] = []
    named = None
    try:
        for option, value in _read(argv):
            if option is None and named is None:
                named = ALIASES.get(value, value)
            else:
                words.append((option, value))
        name = named or DEFAULT_VERB
        if name not in _VALUES:
            return None
        values: dict[str, Any] = {
            "root": os.environ.get("CRASHD_ROOT") or "/",
            "color": "auto",
            "fleet": None,
            **dict.fromkeys(("quiet", "no_legend", "no_pager", "debug", "json"), False),
            **dict.fromkeys(("host", "label")),
            **_DEFAULTS[name],
            "match": [value for option, value in words if option is None],
        }
        for option, value in words:
            if option is not None:
                destination, meant = _meaning(name, option, value)
                values[destination] = meant
    except _NotPlainError:
        return None
    return VERBS[name], _Values(values)


class _Values:
    """What argparse.Namespace is, but without argparse."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


class _NotPlainError(Exception):
    """Left to arguments.py."""


def _read(argv: Sequence[str]) -> Iterator[tuple[str | None, str]]:
    """Yield each option with its value, which is empty for a flag, and each other word alone."""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word or word == "--" or rest[:1] == ["--"]:
            raise _NotPlainError
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            yield None, word
        elif word == "--json":
            yield word, rest.pop(0) if rest and rest[0] in _JSON_FORMS else ""
        elif equals:
            if not value or not name.startswith("--"):
                raise _NotPlainError
            yield name, value
        elif word in _VALUES["list"] and word != "--fleet":  # its value only after =
            if not rest:
                raise _NotPlainError
            yield word, rest.pop(0)
        else:
            yield word, ""


def _meaning(verb: str, option: str, value: str) -> tuple[str, Any]:
    """Return which value an option sets, and to what."""
    if option == "--json" and (value in _JSON_FORMS or not value):
        return "json", _JSON_FORMS.get(value, True)
    if not value and option in _FLAGS[verb]:
        return _FLAGS[verb][option]
    destination = _VALUES[verb].get(option)
    if destination is None or (value.startswith("-") and destination not in _TIMES) or not value:
        raise _NotPlainError
    if destination == "color" and value not in _COLORS:
        raise _NotPlainError
    if destination != "limit":
        return destination, value
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value)):
        raise _NotPlainError
    return destination, int(value)
