"""Assignments in a shell file, as far as they are clear without running a shell.

sh or bash sources /etc/default/kdump-tools and /etc/sysconfig/kdump, so they may hold any program.
Nothing is run here. Quotes, comments, continued lines, `export` and the last of several assignments
are understood. If a shell would have to compute a value (`$…`, backticks, `~`, arrays) or may not
reach it (inside `if`, after `&&`), its variable is *unknown*.

Source: POSIX.1-2024, Shell Command Language, 2.2 (quoting), 2.3 (tokens), 2.9.1 (simple commands).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from crashd.errors import FormatError

TEXT_MAX: Final = 256 * 1024
"""Bytes of a file; the one of kdump-tools has 5 KiB."""
PROBLEMS_MAX: Final = 20

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_OPENING = frozenset({"if", "for", "while", "until", "case", "{", "(", "select"})
_CLOSING = frozenset({"fi", "done", "esac", "}", ")"})
_FILLING = frozenset({"then", "else", "elif", "do", "in", "!", "time"})
_DECLARING = frozenset({"export", "readonly"})
_HARMLESS = frozenset({":", "true", "false", "echo", "[", "test"})
# Builtins that read a file or may set any variable.
_CHANGING = frozenset({".", "source", "eval", "read", "getopts", "declare", "typeset", "local"})
_CHANGING |= {"let", "mapfile", "readarray", "printf", "alias", "set", "command", "builtin", "exec"}
_CHANGING |= {"shopt", "trap", "enable"}
# Special builtins: assignments before them persist with sh, but not with bash.
_SPECIAL = frozenset({":", ".", "break", "continue", "eval", "exec", "exit", "export", "readonly"})
_SPECIAL |= {"return", "set", "shift", "times", "trap", "unset"}
_SEPARATORS = ("&&", "||", ";;", ";", "&", "|", "\n", "(", ")")


@dataclass(frozen=True, slots=True)
class ShellVariables:
    """The variables of a shell that has read the file."""

    values: Mapping[str, str] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    """Assigned, but only a shell can compute the value."""
    whole: bool = True
    """False: variables not named here may have been assigned as well."""
    problems: tuple[str, ...] = ()
    """What was not understood, with line numbers; without any text of the file."""

    def get(self, name: str, default: str) -> str | None:
        """Return a variable as ${NAME:=default} does; None if only a shell could compute it."""
        if name in self.unknown or (not self.whole and name not in self.values):
            return None
        return self.values.get(name) or default


@dataclass(slots=True)
class _Word:
    text: str
    line: int
    computed: bool = False
    """Holds something that a shell would expand."""
    bare: int = 0
    """Characters before the first quote: an assignment's name has no quote in it."""
    separator: bool = False
    redirection: bool = False


@dataclass(slots=True)
class _State:
    values: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    depth: int = 0
    """Depth of compound commands: it is not known here whether their contents run."""
    parens: int = 0
    conditional: bool = False
    left: bool = False
    """The shell may have left the file before this line."""
    functions: bool = False
    """The file defines functions, so that any command may be one."""
    broken: bool = False
    """The text is not understood from some line on."""
    whole: bool = True

    @property
    def certain(self) -> bool:
        return not (self.depth or self.conditional or self.left)

    def problem(self, line: int, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"line {line}: {text}")

    def lose_all(self) -> None:
        """Note that any variable may have been assigned anything."""
        self.unknown |= self.values.keys()
        self.values.clear()
        self.whole = False

    def assign(self, name: str, value: str, *, known: bool) -> None:
        self.values.pop(name, None)
        self.unknown.discard(name)
        if known and self.certain:
            self.values[name] = value
        else:
            self.unknown.add(name)


def parse_shell(raw: bytes) -> ShellVariables:
    """Parse the assignments of a shell file; bytes that are not UTF-8 become surrogates.

    Raises:
        FormatError: it is longer than TEXT_MAX, or contains a NUL.

    """
    if len(raw) > TEXT_MAX:
        raise FormatError(f"shell file has {len(raw)} bytes, more than {TEXT_MAX}")
    if b"\0" in raw:
        raise FormatError("shell file holds a NUL byte")
    state = _State()
    command: list[_Word] = []
    for word in _split_words(raw.decode("utf-8", "surrogateescape"), state):
        if not word.separator:
            command.append(word)
            continue
        # A pattern of `case` is not a command.
        is_pattern = word.text == ")" and not state.parens
        if not is_pattern and not _run(command, state, word.text):
            break
        if word.text == "(":
            state.functions |= bool(command)
            state.depth, state.parens = state.depth + 1, state.parens + 1
        elif word.text == ")" and state.parens:  # one without "(" belongs to `case`
            state.depth, state.parens = max(0, state.depth - 1), state.parens - 1
        if command or word.text != "\n":  # a command may follow && on the next line
            state.conditional = word.text in ("&&", "||", "|")
        command = []
    if state.broken:
        state.lose_all()
    elif state.depth:
        state.problem(raw.count(b"\n") + 1, "a compound command is not closed")
    unknown, problems = frozenset(state.unknown), tuple(state.problems)
    return ShellVariables(state.values, unknown, state.whole, problems)


def _run(command: list[_Word], state: _State, separator: str) -> bool:
    """Note what a simple command does to the variables; return False if it leaves the file."""
    words = _strip_keywords(command, state)
    redirected = any(word.redirection for word in words)
    words = [w for w, before in zip(words, [None, *words], strict=False) if _is_own(w, before)]
    declares = bool(words) and words[0].text in _DECLARING
    candidates = words[1:] if declares else words
    found = [_split_assignment(word) for word in candidates]
    names_only = declares or all(found)
    name = next((w.text for w, f in zip(words, found, strict=False) if f is None), "")
    if separator in ("|", "&"):
        return True  # another process runs it: the file's own shell never sees the variable
    # A variable before a command, as in `A=1 command`, does not stay either.
    persistent = names_only or name in _SPECIAL
    certain = names_only and not redirected and separator not in ("&&", "||")
    for assignment, word in zip(found, candidates, strict=True):
        if assignment is not None and persistent:
            state.assign(*assignment, known=certain and not word.computed)
        elif declares and word.computed:
            state.lose_all()  # export $NAME=…
    return names_only or _note_command(words, state)


def _is_own(word: _Word, before: _Word | None) -> bool:
    """Return whether a word is the command's own, not part of a redirection."""
    return not (word.redirection or (before is not None and before.redirection))


def _strip_keywords(command: list[_Word], state: _State) -> list[_Word]:
    """Remove the reserved words from a command's start, and count their depth."""
    words = command
    while words and words[0].bare == len(words[0].text):
        text = words[0].text
        if text in _OPENING:
            state.depth += 1
        elif text in _CLOSING:
            state.depth = max(0, state.depth - 1)
        elif text not in _FILLING:
            break
        if text in ("for", "select") and len(words) > 1:
            state.assign(words[1].text, "", known=False)
        # What follows these is not a command.
        words = [] if text in ("for", "case", "select", "in") else words[1:]
    return words


def _note_command(words: list[_Word], state: _State) -> bool:
    """Note a command that is not an assignment; return False if it ends the file."""
    first = next((word for word in words if _split_assignment(word) is None), None)
    if first is None:
        return True
    name, certain = first.text, state.certain
    if name in ("exit", "return"):
        state.left = True
        return not certain
    if name == "unset" and not any(word.computed for word in words):
        for word in words[1:]:
            state.values.pop(word.text, None)
            state.unknown.discard(word.text)
            if not certain:
                state.unknown.add(word.text)
    elif name in _CHANGING or name == "unset" or first.computed or state.functions:
        state.problem(first.line, "runs or reads something that may change any variable")
        state.lose_all()
    elif name not in _HARMLESS:
        state.problem(first.line, "a command, which is not run here")
    return True


def _split_assignment(word: _Word) -> tuple[str, str] | None:
    name, equals, value = word.text.partition("=")
    is_one = equals and len(name) < word.bare and _NAME.fullmatch(name)
    return (name, value) if is_one else None


def _split_words(text: str, state: _State) -> list[_Word]:
    """Split a file into words and separators; the last is always a separator."""
    words: list[_Word] = []
    at, line = 0, 1
    while at < len(text):
        char = text[at]
        if char in " \t":  # a carriage return is not a blank to a shell, but part of the value
            at += 1
        elif text.startswith("\\\n", at):
            at, line = at + 2, line + 1
        elif char == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif separator := next((s for s in _SEPARATORS if text.startswith(s, at)), None):
            words.append(_Word(separator, line, separator=True))
            line += separator == "\n"
            at += len(separator)
        elif char in "<>":
            if text.startswith("<<", at):
                state.problem(line, "a here-document: the file is not understood")
                state.broken = True
                break
            words.append(_Word("", line, redirection=True))
            at += 1
        else:
            word = _Word("", line)
            end = _read_word(text, at, word)
            if end < 0:
                state.problem(line, "a quote is not closed: a shell refuses the file")
                state.broken = True
                break
            line += text.count("\n", at, end)
            at = end
            words.append(word)
    words.append(_Word("\n", line, separator=True))
    return words


def _read_word(text: str, at: int, word: _Word) -> int:
    """Read one word into `word`; return the position after it, -1 if a quote stays open."""
    parts: list[str] = []
    bare: int | None = None
    while at < len(text) and text[at] not in " \t\n;&|()<>":
        char = text[at]
        if bare is None and char in "'\"\\":
            bare = len(parts)  # every part before is one character
        if char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                return -1
            parts.append(text[at + 1 : end])
            at = end + 1
        elif char == '"':
            at = _read_double(text, at + 1, parts, word)
            if at < 0:
                return -1
        elif char == "\\":
            if text[at + 1 : at + 2] != "\n":
                parts.append(text[at + 1 : at + 2])
            at += 2
        else:
            if char in "$`" or (char == "~" and (not parts or parts[-1] in "=:")):
                word.computed = True
            parts.append(char)
            at += 1
    # NAME=(…): an array in bash, a syntax error elsewhere.
    word.computed |= text[at : at + 1] == "(" and parts[-1:] == ["="]
    word.text = "".join(parts)
    word.bare = len(word.text) if bare is None else bare
    return at


def _read_double(text: str, at: int, parts: list[str], word: _Word) -> int:
    """Read the inside of double quotes; return the position after the closing one, or -1."""
    while at < len(text):
        char = text[at]
        if char == '"':
            return at + 1
        if char == "\\" and text[at + 1 : at + 2] in ('"', "\\", "$", "`", "\n"):
            parts.append(text[at + 1].replace("\n", ""))
            at += 2
            continue
        word.computed |= char in "$`"
        parts.append(char)
        at += 1
    return -1
