"""The script languages whose stacks are read: what belongs to the interpreter, and what to a
program. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Language:
    """What tells a script's own frames from those of its interpreter."""

    name: str
    """As it is written."""
    module: re.Pattern[str]
    """The interpreter, and its own extension modules."""
    function: re.Pattern[str]
    """The interpreter's functions where they are linked into a program."""
    library: re.Pattern[str] = _NEVER
    """Files of the language's own library."""


_CALLS_C = re.compile(r"/libffi\.so")
"""Calls C functions for all of them."""

LANGUAGES: Final[Mapping[str, Language]] = {
    "python": Language(
        "Python",
        re.compile(
            r"/(lib)?python3(\.\d+)?[a-z]*(\.so[.\d]*)?$|/lib(64)?/python3(\.\d+)?/lib-dynload/"
        ),
        re.compile(r"_?Py[A-Z_]"),
        re.compile(r"/lib(64)?/python3\.\d+/(?!(site|dist)-packages/)|^<frozen "),
    ),
    "php": Language(
        "PHP",
        re.compile(
            r"/(lib)?php(-fpm|-cgi)?[\d.]*(\.so[.\d]*)?$|/lib(64)?/php/\d+/(ffi|opcache)\.so$"
        ),
        re.compile(r"_?(zend|php|zif|zim|ZEND)_|execute_ex$"),
    ),
    "perl": Language(
        "Perl",
        re.compile(r"/(lib)?perl(-?5[.\d]*)?(\.so[.\d]*)?$|/perl(-base)?/5\.\d+[.\d]*/auto/"),
        re.compile(r"Perl_|PerlIO|perl_(run|construct|destruct|parse)$"),
        re.compile(r"/(share|lib|lib/[\w-]+)/perl(-base)?/5\.\d+[.\d]*/"),
    ),
    "ruby": Language(
        "Ruby",
        re.compile(r"/(lib)?ruby(-?\d+\.\d+)?(\.so[.\d]*)?$|/ruby/\d+\.\d+\.\d+/"),
        re.compile(r"(rb|ruby|vm)_|Init_"),
        re.compile(r"/lib(64)?/ruby/\d+\.\d+\.\d+/|^<internal:"),
    ),
    "lua": Language(
        "Lua",
        re.compile(r"/(lib)?lua-?5\.\d(-c\+\+)?(\.so[.\d]*)?$"),
        re.compile(r"lua[A-Z]?_"),
    ),
}
"""By the `kind` of a frame (crashd.domain.cause.analysis)."""
_UNKNOWN = Language("?", _NEVER, _NEVER)


def is_of_interpreter(kind: str, function: str, module: str) -> bool:
    """Return whether a native frame is the interpreter's, one of its own modules', or libffi's."""
    language = LANGUAGES.get(kind, _UNKNOWN)
    return bool(
        language.function.match(function)
        or language.module.search(module)
        or _CALLS_C.search(module)
    )


def is_library_file(kind: str, file: str) -> bool:
    """Return whether a script's file is part of the language's own library."""
    return bool(LANGUAGES.get(kind, _UNKNOWN).library.search(file))


def language_name(kind: str) -> str:
    """Return how a frame's kind is written for people."""
    language = LANGUAGES.get(kind)
    return language.name if language is not None else kind.capitalize()
