"""The configuration: what may stand in crashd.toml.

The classes below are the only list of keys. packaging/genconfig.py makes etc/crashd.toml and the
man page of them: the docstrings of the fields are what the operator reads. configfiles.py reads the
files. May import domain and errors; heavy (pydantic), so import it only where it is needed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

from crashd.domain.limiter import Rate, Scope
from crashd.domain.model import Disposition
from crashd.domain.policy import RULES_MAX, parse_rule
from crashd.domain.policy import Rule as PolicyRule
from crashd.domain.tomltext import show_value
from crashd.domain.units import (
    Amount,
    format_duration,
    parse_bytes,
    parse_duration,
    parse_size,
)
from crashd.errors import UsageError

__all__ = ["Section", "Settings", "ValidationError", "known_keys", "split_listen"]

_PATTERNS_MAX, PATTERN_MAX = 100, 128
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


def _one_of(*choices: str) -> Rule:
    def parse(value: Any) -> Any:
        if isinstance(value, str) and value in choices:
            return value
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


def _parse_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _parse_rules(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > RULES_MAX:
        raise ValueError
    for rule in value:
        if not isinstance(rule, str):
            raise _Why(f"{show_value(rule)} is no rule")
        try:
            parse_rule(rule)
        except ValueError as e:
            raise _Why(f"{show_value(rule)}: {e}") from e
    return tuple(value)


def _parse_limit(value: Any) -> Any:
    if value == "infinity" or (_is_text_or_int(value) and parse_bytes(value) >= 0):
        return value
    raise ValueError


def _parse_auto_size(value: Any) -> Any:
    if value == "auto" or (_is_text_or_int(value) and parse_bytes(value) >= 0):
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
        if not isinstance(pattern, str) or not 0 < len(pattern) <= PATTERN_MAX:
            raise _Why(f"{show_value(pattern)} is not such a pattern")
        if "=" in pattern or "\0" in pattern:
            raise _Why(f"{show_value(pattern)}: no variable's name has such a character")
    return tuple(value)


_SIZE_OR_INFINITY = Rule('a size such as "64M", or "infinity"', _parse_limit)
_SIZE_OR_AUTO = Rule('"auto" or a size such as "64M"', _parse_auto_size)
_FLAG = Rule("true or false", _parse_flag)
_RULES = Rule(f'an array of at most {RULES_MAX} rules such as "mini exe=/usr/bin/*"', _parse_rules)
_AMOUNT = Rule('a size such as "64M" or a share such as "10%"', _parse_amount)
_LISTEN = Rule('"HOST:PORT", "[IPV6]:PORT" or "off"', _parse_listen)
_PATTERNS = Rule(
    f"an array of at most {_PATTERNS_MAX} patterns of 1 to {PATTERN_MAX} characters",
    _parse_patterns,
)


# -- the keys --------------------------------------------------------------------------------------


class Section(BaseModel):
    """One table of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Capture(Section):
    """How crashes of processes are taken from the kernel."""

    mode: Annotated[Literal["auto", "pipe", "socket"], _one_of("auto", "pipe", "socket")] = "auto"
    """How the kernel hands over a core. "pipe" starts `crashd-core` for each crash, which keeps it
    by itself while crashd is away. "socket" (Linux 6.17 and later) lets the kernel connect to
    crashd: no program is started, which is ten times as fast for a small process, but a crash is
    lost when nobody listens, so the socket should be systemd's (crashd-kernel.socket). "auto" is
    "socket" where systemd passes that socket and the kernel tells signal and code of a crash
    without its notes (6.19), and "pipe" everywhere else."""

    engine: Annotated[Literal["auto", "memory", "stream"], _one_of("auto", "memory", "stream")] = (
        "auto"
    )
    """How a core is read. "stream" reads all of what the kernel writes, pages never used included.
    "memory" reads what is in use directly from the process, which the kernel holds meanwhile, and
    makes of it the same core to the byte; where anything casts a doubt on that it falls back to the
    stream. "auto" is "memory" for all but the smallest cores, which the stream brings sooner."""

    buffer: Annotated[str | int, _SIZE_OR_AUTO] = "auto"
    """How much memory all captures together may use to let processes go before their cores are
    compressed. What does not fit is read as fast as it can be stored. "auto" is an eighth of the
    machine's memory, but at least 64M and at most 4G. Never more is used than half of what is
    available at the time."""

    page_timeout: Annotated[str | int, _duration(_SECOND_NS // 10, 600 * _SECOND_NS)] = "5s"
    """The longest time for one read of memory that a file system, or the process itself by FUSE or
    userfaultfd, has to bring in. What does not answer is zeros in the core, which is marked as
    truncated."""

    keep: Annotated[Literal["full", "mini", "metadata"], _one_of("full", "mini", "metadata")] = (
        "full"
    )
    """How much is kept of a crash: the "full" core, a "mini" core (all threads' stacks, and what a
    debugger needs to name the functions on them), or "metadata" only. The limiter may keep less."""

    rules: Annotated[tuple[str, ...], _RULES] = ()
    """Exceptions from `keep`, the first that fits counts: "DISPOSITION FIELD=PATTERN ...", where
    the fields are exe, unit, uid, signal (such as SIGABRT) and comm, and the patterns are those of
    the shell: "mini exe=/usr/lib/chromium/*", "metadata unit=batch-*.service uid=1000"."""

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

    def buffer_bytes(self, memory_bytes: int) -> int:
        """Resolve `buffer` for a host with so much memory."""
        if self.buffer == "auto":
            return max(64 * _MIB, min(memory_bytes // 8, 4096 * _MIB))
        return parse_bytes(self.buffer)

    @property
    def policy(self) -> tuple[PolicyRule, ...]:
        """`rules`, parsed."""
        return tuple(parse_rule(rule) for rule in self.rules)

    @property
    def disposition(self) -> Disposition:
        """`keep` as a disposition."""
        return Disposition(self.keep)

    @property
    def page_timeout_ns(self) -> int:
        """`page_timeout` in nanoseconds."""
        return parse_duration(self.page_timeout)

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


class LimiterSite(Section):
    """Crashes of one user's executable by the same signal at the same place in its code."""

    full: Annotated[int, _whole(0, 1_000_000)] = 5
    """How many are kept as the rules say."""

    mini: Annotated[int, _whole(0, 1_000_000)] = 20
    """How many more are kept as mini cores; all others are only counted."""

    per: Annotated[str | int, _duration(_SECOND_NS, 366 * _DAY_NS)] = "1h"
    """The time in which as many are kept again."""

    @property
    def rate(self) -> Rate:
        """The keys as one value."""
        return Rate(self.full, self.mini, parse_duration(self.per))


class LimiterUnit(Section):
    """Crashes of one user in one unit of systemd."""

    full: Annotated[int, _whole(0, 1_000_000)] = 20
    """How many are kept as the rules say."""

    mini: Annotated[int, _whole(0, 1_000_000)] = 100
    """How many more are kept as mini cores; all others are only counted."""

    per: Annotated[str | int, _duration(_SECOND_NS, 366 * _DAY_NS)] = "1h"
    """The time in which as many are kept again."""

    @property
    def rate(self) -> Rate:
        """The keys as one value."""
        return Rate(self.full, self.mini, parse_duration(self.per))


class LimiterUid(Section):
    """All crashes of one user."""

    full: Annotated[int, _whole(0, 1_000_000)] = 100
    """How many are kept as the rules say."""

    mini: Annotated[int, _whole(0, 1_000_000)] = 500
    """How many more are kept as mini cores; all others are only counted."""

    per: Annotated[str | int, _duration(_SECOND_NS, 366 * _DAY_NS)] = "1h"
    """The time in which as many are kept again."""

    @property
    def rate(self) -> Rate:
        """The keys as one value."""
        return Rate(self.full, self.mini, parse_duration(self.per))


class Limiter(Section):
    """How many crashes of the same kind are kept: a program in a crash loop shall cost neither the
    disk nor other programs' cores. Each crash is recorded in any case, and `crashctl info` says
    what was not kept, and why."""

    enabled: Annotated[bool, _FLAG] = True
    """Whether there are any limits."""

    site: LimiterSite = LimiterSite()
    unit: LimiterUnit = LimiterUnit()
    uid: LimiterUid = LimiterUid()

    def rates(self) -> dict[Scope, Rate]:
        """Tell the limits; none when it is off."""
        if not self.enabled:
            return {}
        return {Scope.SITE: self.site.rate, Scope.UNIT: self.unit.rate, Scope.UID: self.uid.rate}


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
    limiter: Limiter = Limiter()
    retention: Retention = Retention()
    http: Http = Http()
    privacy: Privacy = Privacy()
    log: Log = Log()


def known_keys(model: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """List every dotted key, sections included, in the order of the model."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
