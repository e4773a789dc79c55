"""What tomllib does not report, for error messages: lines of keys, and how keys and values look."""

import re
import tomllib

from crashd.domain.text import printable

_SHOWN_MAX = 60

_TOKEN = re.compile(
    r"(?P<skip>[ \t\r]+|\#[^\n]*)"
    r'|(?P<text>"""(?:[^"\\]|\\.|"{1,2}(?!"))*"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*')"
    r"|(?P<mark>[\[\]{}=,.\n])"
    r"|(?P<word>[^\s\"'\[\]{}=,.\#]+)",
    re.DOTALL,
)


def show_value(value: object) -> str:
    """Format a value as TOML, short enough for an error message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = printable(value)
        return f'"{text}"' if len(text) <= _SHOWN_MAX else f'"{text[:_SHOWN_MAX]}…"'
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge number"
    return str(value)


def show_key(key: tuple[str, ...]) -> str:
    """Format a key as in a file, with quotes where needed."""
    return ".".join(p if re.fullmatch(r"[\w-]{1,80}", p, re.ASCII) else show_value(p) for p in key)


def locate_keys(text: str) -> dict[tuple[str, ...], int]:
    """Return the lines of the keys and tables of valid TOML, which tomllib does not report.

    A key in several elements of an array is left out, because its line would be a guess.
    """
    locator = _Locator()
    line = 1
    for match in _TOKEN.finditer(text):
        token = match.group()
        if match.lastgroup in ("text", "word"):
            locator.word(token, line)
        elif match.lastgroup == "mark":
            locator.mark(token)
        line += token.count("\n")
    return {key: line for key, line in (locator.implied | locator.lines).items() if line}


class _Locator:
    """Tracks the brackets of a TOML document, token by token."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, ...], int] = {}  # 0 if there are several
        self.implied: dict[tuple[str, ...], int] = {}  # the a and a.b of a.b.c
        self._table: tuple[str, ...] = ()
        self._open: list[tuple[str, tuple[str, ...]]] = []  # brackets, each with its key
        self._key: tuple[str, ...] = ()  # the key of the value being read
        self._parts: list[str] = []
        self._first = 0  # line of the first of _parts
        self._in_value = False

    def word(self, token: str, line: int) -> None:
        """Take a part of a key; ignore values."""
        if self._in_value:
            return
        self._first = self._first if self._parts else line
        self._parts.append(tomllib.loads(f"k={token}")["k"] if token[0] in "\"'" else token)

    def mark(self, token: str) -> None:
        """Take one character of punctuation."""
        if token == "\n":
            if not self._open:
                self._start_key()
        elif self._in_value:
            self._mark_in_value(token)
        elif token == "=":
            self._key = self._note(self._open[-1][1] if self._open else self._table)
            self._in_value = True
        elif token == "]" and self._parts:  # end of a header
            self._table = self._note(())
            self._in_value = True  # nothing but a newline can follow
        elif token == "}":  # end of an empty table
            self._close()

    def _mark_in_value(self, token: str) -> None:
        if token in "[{":
            self._open.append((token, self._key))
            if token == "{":
                self._start_key()
        elif token in "]}" and self._open:
            self._close()
        elif token == "," and self._open and self._open[-1][0] == "{":
            self._start_key()

    def _close(self) -> None:
        _, self._key = self._open.pop()
        self._in_value = True

    def _start_key(self) -> None:
        self._parts = []
        self._in_value = False

    def _note(self, base: tuple[str, ...]) -> tuple[str, ...]:
        key = (*base, *self._parts)
        for length in range(len(base) + 1, len(key)):
            self.implied.setdefault(key[:length], self._first)
        self.lines[key] = 0 if key in self.lines else self._first
        self._parts = []
        return key
