"""Reads and merges the configuration files into one `Settings`; reports errors by line."""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from crashd.configuration.keys import Settings, ValidationError, known_keys
from crashd.configuration.tomltext import locate_keys, show_key, show_value
from crashd.configuration.values import PATTERN_MAX
from crashd.domain.text import printable
from crashd.errors import ConfigError, reason_of
from crashd.store.paths import Paths
from crashd.store.trusted import read_trusted

FILE_MAX: Final = 1 << 20
"""Bytes of one configuration file."""

ERRORS_MAX: Final = 20
"""How many errors are reported at once."""


def load(paths: Paths) -> Settings:
    """Read the configuration file and its drop-ins; a missing file is not an error.

    Raises:
        ConfigError: a file cannot be read, is not safe, or has an error in it.
    """
    return load_files(find_files(paths))


def find_files(paths: Paths) -> list[Path]:
    """List the files that `load` reads, in order: a later file wins.

    Raises:
        ConfigError: a directory cannot be read.
    """
    try:
        names = sorted(os.listdir(paths.config_dropins))
    except FileNotFoundError:
        names = []
    except OSError as e:
        raise ConfigError(f"{_name(paths.config_dropins)}: cannot be read: {reason_of(e)}") from e
    files = [
        paths.config_dropins / name
        for name in names
        if name.endswith(".toml") and not name.startswith(".")  # left behind by editors
    ]
    try:
        os.lstat(paths.config_file)  # a dangling link is a mistake, not a missing file
    except FileNotFoundError:
        return files
    except OSError as e:
        raise ConfigError(f"{_name(paths.config_file)}: cannot be read: {reason_of(e)}") from e
    return [paths.config_file, *files]


def load_files(files: Sequence[Path]) -> Settings:
    """Merge the files; each must be valid by itself, and a later file wins, key by key.

    Raises:
        ConfigError: a file does not exist, cannot be read, is not safe, or has an error in it. The
            message reports the first error, the hint lists the others.
    """
    merged: dict[str, Any] = {}
    errors: list[str] = []
    for path in files:
        text = _read_text(path)
        document = _parse_toml(path, text)
        try:
            Settings.model_validate(document)
        except ValidationError as e:
            errors += _explain(path, text, e)
        else:
            _merge(merged, document)
    if errors:
        first, *others = errors
        raise ConfigError(first, hint=_list_others(others))
    return Settings.model_validate(merged)  # cannot fail: every rule concerns one key only


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Put the keys of `over` into `base`; both are validated, so their tables match."""
    for key, value in over.items():
        if isinstance(value, dict):
            _merge(base.setdefault(key, {}), value)
        else:
            base[key] = value


def _list_others(others: list[str]) -> str | None:
    if not others:
        return None
    lines = [f"{len(others)} more:", *others[:ERRORS_MAX]]
    if len(others) > ERRORS_MAX:
        lines.append("…")
    return "\n".join(lines)


def _name(path: Path) -> str:
    return printable(os.fsencode(path))


def _read_text(path: Path) -> str:
    try:
        return read_trusted(path, FILE_MAX).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"{_name(path)}:{line}: is not UTF-8") from e


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as e:
        raise ConfigError(f"{_name(path)}: is nested too deeply") from e
    except ValueError as e:  # TOMLDecodeError, or int() of too many digits
        match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(e), re.DOTALL)
        where = f"{_name(path)}:{match[2]}:{match[3]}" if match else _name(path)
        raise ConfigError(f"{where}: {printable(match[1] if match else str(e))}") from e


# -- what is wrong, and where ----------------------------------------------------------------------


def _explain(path: Path, text: str, error: ValidationError) -> list[str]:
    """Turn pydantic's errors into messages, in the order of the file."""
    lines = locate_keys(text)
    found = []
    for item in error.errors(include_url=False):
        key = tuple(part for part in item["loc"] if isinstance(part, str))
        dotted = show_key(key)
        if item["type"] == "extra_forbidden":
            message = f"unknown key '{dotted}'{_suggest(key)}"
        elif item["type"] == "value_error":
            message = f"{dotted}: {item['ctx']['error']}"
        else:  # a key in place of a section; pydantic checks nothing else itself
            message = f"{dotted}: must be a table, not {show_value(item['input'])}"
        line = lines.get(key)
        found.append((line or 0, f"{_name(path)}:{line or ''}".rstrip(":") + f": {message}"))
    return [message for _, message in sorted(found, key=lambda pair: pair[0])]


def _suggest(key: tuple[str, ...]) -> str:
    """Suggest the key with the most similar spelling: in the same section, else in any other."""
    import difflib  # imported here: needed only for errors

    *section, name = ".".join(key).split(".")  # "a.b" in quotes was meant as a.b
    known = [dotted.split(".") for dotted in known_keys()]
    here = [other for other in known if other[:-1] == section]
    for pool, cutoff in ((here, 0.6), (known, 0.8)):
        names = {other[-1]: other for other in reversed(pool)}
        for near in difflib.get_close_matches(name[:PATTERN_MAX], names, n=1, cutoff=cutoff):
            return f"; did you mean '{'.'.join(names[near])}'?"
    return ""
