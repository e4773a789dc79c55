#!/usr/bin/python3
"""Make etc/crashd.toml and packaging/man/crashd.toml.5.rst of crashd/configuration/keys.py.

Run it from anywhere after a change of the model; with `--check` it writes nothing and exits 1 where
a file is not what it would write (tests/unit/test_shipped_config.py checks the same).
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from crashd.configuration import keys as config  # noqa: E402
from crashd.configuration.values import Form  # noqa: E402

WIDTH = 79

TOML_HEAD = """\
# Configuration of crashd. crashd.toml(5) has all of this, and more words.
#
# Every key stands here with its default, commented out. What you change is best
# put into a file of its own, /etc/crashd/crashd.toml.d/NAME.toml: these are read
# after this one, in the order of their names, and the later file wins, key by
# key. As root, crashd reads only files that root owns and nobody else can write.
#
# `crashd check-config` tells whether all is well, and `systemctl reload crashd`
# puts it into effect. A key that crashd does not know is an error.
#
# Made by packaging/genconfig.py of crashd/configuration/keys.py.
"""

MAN_HEAD = """\
.. Made by packaging/genconfig.py of crashd/configuration/keys.py; change it there.

===========
crashd.toml
===========

-----------------------
configuration of crashd
-----------------------

:Manual section: 5
:Manual group: crashd

SYNOPSIS
========

| */etc/crashd/crashd.toml*
| */etc/crashd/crashd.toml.d/\\*.toml*

DESCRIPTION
===========

These files configure **crashd**\\ (8). They are TOML (version 1.0) in UTF-8, of at most 1 MiB
each. The file *crashd.toml* is read first, then the drop-ins in the order of their names (those
that begin with a dot are not read); where two files set the same key, the later one wins, for
this key alone. Files that do not exist are no error, and every key has a default. The file as
it is shipped lists all keys with their defaults, commented out.

Every file has to be right by itself. A key that is not known, a value that is not right for its
key (nothing is converted: ``"1"`` is no number, ``"yes"`` is not ``true``), or a file that
cannot be read is an error, which names the file and, where it can, the line. **crashd** then
does not start, and exits with status 2; on reload (SIGHUP, **systemctl reload crashd**) it logs
the error and keeps the configuration that it has. **crashd check-config** checks the files
without starting anything.

The configuration decides what root does. Running as root, **crashd** therefore refuses a file that
does not belong to root, or that its group or others can write, and one in such a directory (unless
the directory has the sticky bit). What counts of a symbolic link is the file that it leads to.

Sizes
-----

A number of bytes (``65536``), or a string of a number and a unit: ``"64K"``, ``"1.5G"``. The
units are K, M, G, T, P and E, powers of 1024 as everywhere in systemd; ``"64KB"``, ``"64kB"``
and ``"64KiB"`` mean the same as ``"64K"``. Where a share is taken too, it is written ``"10%"``.

Durations
---------

A number of seconds (``300``), or a string of numbers and units that add up: ``"300s"``,
``"5min"``, ``"1h 30min"``, ``"2 weeks"``. The units are those of **systemd.time**\\ (7): ns,
us, ms, s, min (m), h, d, w, month (M: 30.4375 days) and y (365.25 days), with their longer
names.
"""

MAN_TAIL = """\
FILES
=====

*/etc/crashd/crashd.toml*
    The configuration.

*/etc/crashd/crashd.toml.d/\\*.toml*
    Drop-ins, read after it.

With **crashd run --root** *DIR*, both are looked for below *DIR*.

EXAMPLE
=======

A drop-in for a host with little disk and a service whose cores are large::

    # /etc/crashd/crashd.toml.d/small-disk.toml
    [capture]
    max_core = "4G"

    [retention.process]
    keep_free = "20%"

SEE ALSO
========

**crashd**\\ (8), **crashctl**\\ (1), **crashd-core**\\ (8), **core**\\ (5), **systemd.time**\\ (7)
"""


@dataclass(frozen=True, slots=True)
class Key:
    """One key as it is documented."""

    name: str
    text: str
    values: str
    default: str
    """As TOML."""


@dataclass(frozen=True, slots=True)
class Table:
    """One section as it is documented."""

    name: str
    text: str
    keys: tuple[Key, ...]


def list_tables(model: type[config.Section] = config.Settings, prefix: str = "") -> Iterator[Table]:
    """List the tables that hold keys, in the order of the model."""
    texts = field_docstrings(model)
    keys = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            continue
        (rule,) = (m for m in field.metadata if isinstance(m, Form))
        keys.append(Key(name, texts[name], rule.words, write_toml(field.default)))
    if keys:
        yield Table(prefix, " ".join((model.__doc__ or "").split()), tuple(keys))
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            yield from list_tables(field.annotation, f"{prefix}.{name}".lstrip("."))


def field_docstrings(model: type[config.Section]) -> dict[str, str]:
    """Read the string below each field, which Python does not keep."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{model} is not a class")
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                texts[name] = " ".join(words.split())
    return texts


def write_toml(value: object) -> str:
    """Write a default as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(write_toml(item) for item in value) + "]"
    text = str(value)  # str, or an Amount
    if not text.isprintable() or set(text) & set('"\\'):
        raise ValueError(f"{text!r} needs more than quotes")
    return f'"{text}"'


def build_toml() -> str:
    """Build etc/crashd.toml."""
    lines = [TOML_HEAD]
    for table in list_tables():
        lines += [*_comment(table.text), f"[{table.name}]", ""]
        for key in table.keys:
            lines += [*_comment(key.text), *_comment(f"Values: {key.values}.")]
            lines += [f"#{key.name} = {key.default}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text.replace("`", ""),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def build_man() -> str:
    """Build the source of crashd.toml(5), for docutils' manpage writer."""
    parts = [MAN_HEAD]
    for table in list_tables():
        title = f"[{table.name}]"
        parts.append(f"{title}\n{'=' * len(title)}\n\n{_rst(table.text)}\n")
        for key in table.keys:
            text = f"{_rst(key.text)}\n\nValues: {_rst(key.values)}. Default: ``{key.default}``."
            parts.append(f"**{key.name}**\n{textwrap.indent(text, '    ')}\n")
    return "\n".join([*parts, MAN_TAIL])


def _rst(text: str) -> str:
    """Turn a docstring into reStructuredText: `x` is a literal, and nothing else is markup."""
    pieces = re.split(r"`([^`]+)`", text)
    pieces[0::2] = [re.sub(r"([\\*|]|_\b)", r"\\\1", piece) for piece in pieces[0::2]]
    pieces[1::2] = [f"``{piece}``" for piece in pieces[1::2]]
    return textwrap.fill("".join(pieces), WIDTH, break_long_words=False, break_on_hyphens=False)


OUTPUTS = {
    Path("etc/crashd.toml"): build_toml,
    Path("packaging/man/crashd.toml.5.rst"): build_man,
}


def main() -> int:
    """Write the files, or check them; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 on a difference"
    )
    arguments = parser.parse_args()
    status = 0
    for name, build in OUTPUTS.items():
        path, text = ROOT / name, build()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if arguments.check:
            print(
                f"{name}: is not what crashd/configuration/keys.py says; run {Path(__file__).name}"
            )
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{name}: written")
    return status


if __name__ == "__main__":
    sys.exit(main())
