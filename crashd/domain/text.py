"""Turns bytes that an attacker chose into text that is safe for people and terminals."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    import re

# Texts, compiled when they are first used, and re is loaded only then: most lines that crashctl
# prints need none of them.
_SHELL_SAFE = rb"[A-Za-z0-9_@%+=:,./-]+"
_NOT_PLAIN = r"[^\x20-\x7e]+"
_UNSEEN = (
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    r"\U000e0000-\U000e0fff]"
)
"""The Default_Ignorable_Code_Points of Unicode's DerivedCoreProperties.txt that str.isprintable()
accepts, and the empty Braille pattern, which looks like a space."""

MARKS_MAX = 5
"""Combining marks per character: more than any script needs, too few to cover the next line."""


def shell_join(argv: tuple[bytes, ...]) -> bytes:
    """Join arguments into one line, quoted for a shell where needed (shlex.join for bytes)."""
    import re

    safe = re.compile(_SHELL_SAFE)
    return b" ".join(
        a if safe.fullmatch(a) else b"'" + a.replace(b"'", b"'\"'\"'") + b"'" for a in argv
    )


def printable(value: bytes | str) -> str:
    """Return one line in which every character is visible; invisible ones become \\xNN.

    Escaped are: control characters, line separators, direction and format marks, lone
    surrogates, private and unassigned code points, every space but the plain one, characters
    drawn as nothing, combining marks without a base character or in large numbers, and bytes
    that are not UTF-8. So no name of a crashed process can move a cursor, forge a line, or
    imitate another name by hidden characters.
    """
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable():
        return text
    import re

    return re.sub(_NOT_PLAIN, _escape_run, text)


def _escape_run(match: re.Match[str]) -> str:
    import re
    from unicodedata import category  # takes a megabyte that most processes never need

    unseen = re.compile(_UNSEEN)
    shown = []
    room = MARKS_MAX if match.start() else 0  # a first mark joins what precedes the text
    for character in match.group():
        # isprintable() is False for Cc, Cf, Cs, Co, Cn, Zl, Zp, and for Zs except U+0020
        hidden = not character.isprintable() or unseen.match(character) is not None
        if category(character).startswith("M"):
            room -= 1
            hidden = hidden or room < 0
        else:
            room = MARKS_MAX
        shown.append(_escape(ord(character)) if hidden else character)
    return "".join(shown)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
