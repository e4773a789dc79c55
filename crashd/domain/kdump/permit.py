"""Whether crashd.service may delete dumps in a directory, and the drop-in that lets it. Pure.

Under ProtectSystem=strict a service may write only below the ReadWritePaths= of its unit and of
the drop-ins. Source: systemd.exec(5), systemd.syntax(7).
"""

from collections.abc import Iterable
from typing import Final

UNIT: Final = "crashd.service"
UNIT_PLACES: Final = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
"""The first one wins."""
DROP_IN: Final = f"etc/systemd/system/{UNIT}.d/50-kernel-dumps.conf"


def is_writable(path: str, unit: str) -> bool:
    """Return whether a unit and its drop-ins, read one after the other, let a service write to a
    directory. A missing unit forbids nothing.
    """
    strict = False
    allowed: list[str] = []
    for line in unit.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or key.startswith(("#", ";")):
            continue
        if key.strip() == "ProtectSystem":
            strict = value.strip() == "strict"
        elif key.strip() in ("ReadWritePaths", "ReadWriteDirectories"):
            words = _split(value)
            allowed = [*allowed, *words] if words else []  # an empty value resets the list
    wanted = _parts(path)
    return not strict or any(wanted[: len(_parts(a))] == _parts(a) for a in allowed)


def build_drop_in(paths: Iterable[str]) -> str:
    """Build the drop-in that lets crashd.service delete below these directories.

    Raises:
        ValueError: a path cannot be named in a unit.

    """
    lines = [
        "# Made by `crashctl kdump --allow-deletion`: crashd deletes kernel dumps there by its",
        "# retention (crashd.toml(5), [retention.kernel]). Without this file, it deletes none.",
        "[Service]",
    ]
    lines += [f"ReadWritePaths={_quote(path)}" for path in paths]
    return "\n".join(lines) + "\n"


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _quote(path: str) -> str:
    if not path.isprintable() or not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} cannot be named in a unit")
    # "-": the directory may be made later; "%" begins a specifier
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"-{escaped}"'


def _split(value: str) -> list[str]:
    """Split a list of paths, which may be quoted; remove prefixes and escapes."""
    words: list[str] = []
    word, quote, escaped, begun = "", "", False, False
    for letter in value.strip():
        if escaped:
            word, escaped = word + letter, False
        elif letter == "\\":
            escaped = True
        elif quote:
            quote, word = ("", word) if letter == quote else (quote, word + letter)
        elif letter in "\"'":
            quote, begun = letter, True
        elif letter.isspace():
            words += [word] if word or begun else []
            word, begun = "", False
        else:
            word += letter
    words += [word] if word or begun else []
    return [word.lstrip("-+").replace("%%", "%") for word in words]
