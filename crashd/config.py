"""The configuration: what may stand in crashd.toml, and how the files become one `Settings`.

The classes below are the only list of keys. packaging/genconfig.py makes etc/crashd.toml and the
man page of them: the docstrings of the fields are what the operator reads. May import domain,
errors, store.paths and store.trusted; heavy (pydantic), so import it only where it is needed.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

from crashd.domain.text import printable
from crashd.domain.tomltext import locate_keys, show_key, show_value
from crashd.domain.units import (
    Amount,
    format_duration,
    parse_bytes,
    parse_duration,
    parse_size,
)
from crashd.errors import ConfigError, UsageError
from crashd.store.paths import Paths
from crashd.store.trusted import read_trusted

FILE_MAX: Final = 1 << 20
"""Bytes of one configuration file."""

ERRORS_MAX: Final = 20
"""How many errors are told at once."""

_PATTERNS_MAX, _PATTERN_MAX = 100, 128
_MIB, _SECOND_NS, _DAY_NS = 1 << 20, 10**9, 86400 * 10**9


# -- what a value may be ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """What one key takes: its parser, and the words that end the sentence "must be …"."""

    words: str
    parse: Callable[[Any], Any]
    """Return the value to keep; ValueError or UsageError for what is refused."""

    def check(self, value: Any) -> Any:
        """Parse `value`, or say what it should have been.

        Raises:
            ValueError: it is refused.

        """
        try:
            return self.parse(value)
        except (ValueError, UsageError) as e:
            why = f" ({e})" if isinstance(e, _Why) else ""
            raise ValueError(f"must be {self.words}, not {show_value(value)}{why}") from e

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Make pydantic use `check`, and nothing of its own that would turn "1" into 1."""
        return core_schema.no_info_plain_validator_function(self.check)


class _Why(ValueError):
    """A refusal that has more to say than the rule's words."""


def _one_of(*choices: str, missing: Mapping[str, str] | None = None) -> Rule:
    """Take one word; `missing` are those that another version takes, with what they stand for."""

    def parse(value: Any) -> Any:
        if isinstance(value, str) and value in choices:
            return value
        if isinstance(value, str) and missing and value in missing:
            raise _Why(f"{missing[value]} is not in this version of crashd")
        raise ValueError

    quoted = [f'"{choice}"' for choice in choices]
    return Rule(" or ".join([", ".join(quoted[:-1]), quoted[-1]]), parse)


def _whole(low: int, high: int, *, auto: bool = False) -> Rule:
    def parse(value: Any) -> Any:
        # type(): True is an int.
        if (type(value) is int and low <= value <= high) or (auto and value == "auto"):
            return value
        raise ValueError

    return Rule(('"auto" or ' if auto else "") + f"between {low} and {high}", parse)


def _duration(low_ns: int, high_ns: int) -> Rule:
    def parse(value: Any) -> Any:
        if _is_text_or_int(value) and low_ns <= parse_duration(value) <= high_ns:
            return value
        raise ValueError

    return Rule(
        f"a duration between {format_duration(low_ns)} and {format_duration(high_ns)}", parse
    )


def _parse_limit(value: Any) -> Any:
    if value == "infinity" or (_is_text_or_int(value) and parse_bytes(value) >= 0):
        return value
    raise ValueError


def _parse_amount(value: Any) -> Amount:
    if isinstance(value, Amount):
        return value
    if _is_text_or_int(value):
        return parse_size(value)
    raise ValueError


def _is_text_or_int(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _parse_listen(value: Any) -> str:
    if value in ("", "off"):
        return ""
    if isinstance(value, str):
        split_listen(value)
        return value
    raise ValueError


def split_listen(listen: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPV6]:PORT`; the brackets go.

    Raises:
        ValueError: it is neither.

    """
    import ipaddress  # only when there is something to check

    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):(\d{1,5})", listen, re.ASCII)
    if not match:
        raise _Why("an IPv6 address stands in brackets") if listen.count(":") > 1 else ValueError
    port = int(match[3])
    if port > 65535:
        raise _Why("ports end at 65535")
    if match[1]:
        return str(ipaddress.IPv6Address(match[1])), port
    labels = match[2].split(".")
    if labels[-1].isdigit():
        return str(ipaddress.IPv4Address(match[2])), port
    if not all(re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", label) for label in labels):
        raise ValueError
    return match[2], port


def _parse_patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > _PATTERNS_MAX:
        raise ValueError
    for pattern in value:
        if not isinstance(pattern, str) or not 0 < len(pattern) <= _PATTERN_MAX:
            raise _Why(f"{show_value(pattern)} is not such a pattern")
        if "=" in pattern or "\0" in pattern:
            raise _Why(f"{show_value(pattern)}: no variable's name has such a character")
    return tuple(value)


_SIZE_OR_INFINITY = Rule('a size such as "64M", or "infinity"', _parse_limit)
_AMOUNT = Rule('a size such as "64M" or a share such as "10%"', _parse_amount)
_LISTEN = Rule('"HOST:PORT", "[IPV6]:PORT" or "off"', _parse_listen)
_PATTERNS = Rule(
    f"an array of at most {_PATTERNS_MAX} patterns of 1 to {_PATTERN_MAX} characters",
    _parse_patterns,
)


# -- the keys --------------------------------------------------------------------------------------


class Section(BaseModel):
    """One table of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Capture(Section):
    """How crashes of processes are taken from the kernel."""

    mode: Annotated[
        Literal["auto", "pipe"],
        _one_of("auto", "pipe", missing={"socket": "the kernel's coredump socket"}),
    ] = "auto"
    """How the kernel hands over a core. "pipe" starts `crashd-core` for each crash; "auto" is the
    best that the running kernel and this version of crashd know, at present always "pipe"."""

    engine: Annotated[
        Literal["auto", "stream"],
        _one_of("auto", "stream", missing={"memory": "reading the process's memory directly"}),
    ] = "auto"
    """How a core is read. "stream" reads all of what the kernel writes; "auto" is the fastest that
    is certain to be right, at present always "stream"."""

    workers: Annotated[int | Literal["auto"], _whole(1, 64, auto=True)] = "auto"
    """How many crashes are captured at the same time, each by a process of its own. "auto" is the
    number of CPUs, but at least 2 and at most 8."""

    max_core: Annotated[str | int, _SIZE_OR_INFINITY] = "32G"
    """The largest core that is kept, before compression; a larger one is cut there and marked as
    truncated. Below 4K no core is kept, only what is known about the crash."""

    deadline: Annotated[str | int, _duration(_SECOND_NS, _DAY_NS)] = "5min"
    """The longest time that one capture may take; what has been read of the core until then is kept
    and marked as truncated. The crashed process cannot be restarted in the meantime."""

    rlimit: Annotated[Literal["honour", "ignore"], _one_of("honour", "ignore")] = "honour"
    """Whether the crashed process's own soft limit RLIMIT_CORE (`ulimit -c`, LimitCORE= of its
    unit) cuts its core as `max_core` does. With "honour" a process whose limit is 0 leaves no core,
    only what is known about the crash."""

    queue: Annotated[int, _whole(1, 4096)] = 128
    """How many crashes may wait for a worker. Each keeps its process from being restarted; of those
    above it `crashd-core` writes the core to the spool by itself."""

    pipe_limit: Annotated[int | Literal["auto"], _whole(1, 10000, auto=True)] = "auto"
    """The value of the sysctl kernel.core_pipe_limit, the number of processes that may dump core at
    the same time; the kernel drops the crashes above it. Each of them stays in memory until its
    capture is done, together with a `crashd-core` of about 10 MB. "auto" is one for each 64 MiB of
    the machine's memory, but at least 32 and at most 512."""

    snapshot_timeout: Annotated[str | int, _duration(_SECOND_NS // 10, 60 * _SECOND_NS)] = "2s"
    """The longest time for reading /proc/PID of the crashed process, which it can make endless.
    What has not been read by then is left out."""

    compression_level: Annotated[int, _whole(1, 19)] = 3
    """The level of zstd at which cores are stored. A higher level makes smaller files and longer
    captures."""

    threads: Annotated[int | Literal["auto"], _whole(0, 64, auto=True)] = "auto"
    """How many threads compress one core; with 0 the worker does it by itself. "auto" is the number
    of CPUs, but at most 4."""

    @property
    def max_core_bytes(self) -> int | None:
        """None where there is no limit."""
        return None if self.max_core == "infinity" else parse_bytes(self.max_core)

    @property
    def deadline_ns(self) -> int:
        """`deadline` in nanoseconds."""
        return parse_duration(self.deadline)

    @property
    def snapshot_timeout_ns(self) -> int:
        """`snapshot_timeout` in nanoseconds."""
        return parse_duration(self.snapshot_timeout)

    def worker_count(self, cpus: int) -> int:
        """Resolve `workers` for a host with so many CPUs."""
        return max(2, min(cpus, 8)) if self.workers == "auto" else self.workers

    def thread_count(self, cpus: int) -> int:
        """Resolve `threads` for a host with so many CPUs."""
        return min(cpus, 4) if self.threads == "auto" else self.threads

    def pipe_limit_for(self, memory_bytes: int) -> int:
        """Resolve `pipe_limit` for a host with so much memory."""
        if self.pipe_limit != "auto":
            return self.pipe_limit
        return max(32, min(memory_bytes // (64 * _MIB), 512))


class RetentionProcess(Section):
    """How long the crashes of processes are kept."""

    keep_free: Annotated[Amount, _AMOUNT] = Amount(thousandths=10_000)
    """How much of the store's file system always stays free: no core is begun, and one that is
    being written is cut, where it would leave less. A share is one of the whole file system,
    whatever its size."""


class Retention(Section):
    """What is kept, and for how long."""

    process: RetentionProcess = RetentionProcess()


class Http(Section):
    """The server of /metrics, /-/healthy and /-/ready."""

    listen: Annotated[str, _LISTEN] = "127.0.0.1:9816"
    """The address that it listens on; port 0 takes any free port, "off" or "" turns the server off.
    Takes effect when crashd starts, and not at all where systemd passes it a socket."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None when the server is off."""
        return split_listen(self.listen) if self.listen else None


class Privacy(Section):
    """What is stored of what a crashed process knew."""

    environ: Annotated[Literal["scrub", "drop", "keep"], _one_of("scrub", "drop", "keep")] = "scrub"
    """What becomes of its environment. "scrub" stores it without the values that look like secrets,
    "drop" stores none of it, "keep" all. The core, which only those who may read it can see, holds
    the environment in any case."""

    patterns: Annotated[tuple[str, ...], _PATTERNS] = ()
    """Names of more variables whose values "scrub" takes out: shell patterns such as "ACME_*",
    upper and lower case being the same."""


class Log(Section):
    """What crashd says about itself."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], _one_of("debug", "info", "warning", "error")
    ] = "info"
    """The least important messages that are logged."""


class Settings(Section):
    """The whole configuration: what the operator wants, defaults included."""

    capture: Capture = Capture()
    retention: Retention = Retention()
    http: Http = Http()
    privacy: Privacy = Privacy()
    log: Log = Log()


# -- the files -------------------------------------------------------------------------------------


def load(paths: Paths) -> Settings:
    """Read the configuration file and its drop-ins; those that do not exist are no error.

    Raises:
        ConfigError: a file cannot be read, is not safe, or holds what is wrong.

    """
    return load_files(find_files(paths))


def find_files(paths: Paths) -> list[Path]:
    """List the files that `load` reads, in its order: the later one wins.

    Raises:
        ConfigError: a directory cannot be read.

    """
    try:
        names = sorted(os.listdir(paths.config_dropins))
    except FileNotFoundError:
        names = []
    except OSError as e:
        raise ConfigError(f"{_name(paths.config_dropins)}: cannot be read: {e.strerror}") from e
    files = [
        paths.config_dropins / name
        for name in names
        if name.endswith(".toml") and not name.startswith(".")  # what editors leave
    ]
    try:
        os.lstat(paths.config_file)  # a link to nothing is a mistake and not a missing file
    except FileNotFoundError:
        return files
    except OSError as e:
        raise ConfigError(f"{_name(paths.config_file)}: cannot be read: {e.strerror}") from e
    return [paths.config_file, *files]


def load_files(files: Sequence[Path]) -> Settings:
    """Merge the files, of which each has to be right by itself; a later one wins, key by key.

    Raises:
        ConfigError: a file does not exist, cannot be read, is not safe, or holds what is wrong. The
            message is about the first error, the hint lists the others.

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
    return Settings.model_validate(merged)  # cannot fail: no rule is about more than one key


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Put the keys of `over` into `base`; both have been validated and so have the same tables."""
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
    """Turn pydantic's errors into lines for people, in the order of the file."""
    lines = locate_keys(text)
    found = []
    for item in error.errors(include_url=False):
        key = tuple(part for part in item["loc"] if isinstance(part, str))
        dotted = show_key(key)
        if item["type"] == "extra_forbidden":
            message = f"unknown key '{dotted}'{_suggest(key)}"
        elif item["type"] == "value_error":
            message = f"{dotted}: {item['ctx']['error']}"
        else:  # a section that is none; whatever else is left to pydantic
            message = f"{dotted}: must be a table, not {show_value(item['input'])}"
        line = lines.get(key)
        found.append((line or 0, f"{_name(path)}:{line or ''}".rstrip(":") + f": {message}"))
    return [message for _, message in sorted(found, key=lambda pair: pair[0])]


def known_keys(model: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """List every dotted key, sections included, in the order of the model."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _suggest(key: tuple[str, ...]) -> str:
    """Name the key that is spelled most like it, in its own section or else in any other."""
    import difflib  # only when there is an error to explain

    *section, name = ".".join(key).split(".")  # "a.b" in quotes is meant to be a.b
    known = [dotted.split(".") for dotted in known_keys()]
    here = [other for other in known if other[:-1] == section]
    for pool, cutoff in ((here, 0.6), (known, 0.8)):
        names = {other[-1]: other for other in reversed(pool)}
        for near in difflib.get_close_matches(name[:_PATTERN_MAX], names, n=1, cutoff=cutoff):
            return f"; did you mean '{'.'.join(names[near])}'?"
    return ""
