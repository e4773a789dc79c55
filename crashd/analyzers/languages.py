"""Which analyzers a core needs. Those of interpreted languages are loaded only for a program with
their interpreter among its files: most of the time of a small core's analysis is imports.

To support another language, add a module with a crashd.analyzers.script.ScriptStacks, its line
here, and how to tell its own frames to crashd.domain.cause.languages.
"""

from collections.abc import Callable
from typing import Final

from crashd.analyzers.analyzer import Analyzer, OpenedCore
from crashd.analyzers.process_core import NativeFacts


def _python() -> type[Analyzer]:
    from crashd.analyzers.pythonstack import PythonStacks

    return PythonStacks


def _php() -> type[Analyzer]:
    from crashd.analyzers.phpstack import PhpStacks

    return PhpStacks


def _perl() -> type[Analyzer]:
    from crashd.analyzers.perlstack import PerlStacks

    return PerlStacks


def _ruby() -> type[Analyzer]:
    from crashd.analyzers.rubystack import RubyStacks

    return RubyStacks


def _lua() -> type[Analyzer]:
    from crashd.analyzers.luastack import LuaStacks

    return LuaStacks


_LANGUAGES: Final[dict[bytes, Callable[[], type[Analyzer]]]] = {
    b"python": _python,
    b"php": _php,
    b"perl": _perl,
    b"ruby": _ruby,
    b"lua": _lua,
}
"""By the beginning of the interpreter's file, or of its library's behind `lib`; the analyzer then
says whether it is one.
"""


def analyzers_of(opened: OpenedCore) -> list[type[Analyzer]]:
    """Return the classes of the analyzers, in the order of their facts; that of the native facts,
    which every analysis needs, is the first. Call it before the seal.
    """
    files = {file.module.name.rpartition(b"/")[2].removeprefix(b"lib") for file in opened.files}
    return [
        NativeFacts,
        *(
            load()
            for name, load in _LANGUAGES.items()
            if any(file.startswith(name) for file in files)
        ),
    ]
