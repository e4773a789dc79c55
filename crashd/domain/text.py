"""Text for people and terminals out of bytes that an attacker chose."""

import re

_SHELL_SAFE = re.compile(rb"[A-Za-z0-9_@%+=:,./-]+")
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shell_join(argv: tuple[bytes, ...]) -> bytes:
    """Join arguments into one line, each quoted where a shell would need it (shlex.join for
    bytes).
    """
    return b" ".join(
        a if _SHELL_SAFE.fullmatch(a) else b"'" + a.replace(b"'", b"'\"'\"'") + b"'" for a in argv
    )


def printable(value: bytes | str) -> str:
    """Make one line that is safe on a terminal: escapes, controls and direction marks become \\xNN.

    C0, DEL, C1, line separators, bidirectional overrides and lone surrogates are all escaped, and
    so is what is not UTF-8: nothing that a crashed process was named can move a cursor or forge a
    line.
    """
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return _CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
