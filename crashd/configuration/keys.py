"""The configuration: what may stand in crashd.toml.

The classes below are the only list of keys. packaging/genconfig.py makes etc/crashd.toml and the
man page of them: the docstrings of the fields are what the operator reads. configvalues.py has what
values may be, configfiles.py reads the files. May import domain and errors; heavy (pydantic), so
import it only where it is needed.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from crashd.configuration.values import (
    AMOUNT,
    AMOUNT_OR_INFINITY,
    DIRECTORIES,
    FLAG,
    LISTEN,
    PATH,
    PATHS,
    PATTERNS,
    RULES,
    SIZE,
    SIZE_OR_AUTO,
    SIZE_OR_INFINITY,
    URL,
    duration,
    one_of,
    split_listen,
    whole,
    whole_or_infinity,
)
from crashd.domain.crash.model import Disposition
from crashd.domain.keep.kernel import KernelPolicy
from crashd.domain.keep.limiter import Rate, Scope, rates_of
from crashd.domain.keep.policy import Rule as PolicyRule
from crashd.domain.keep.policy import parse_rule
from crashd.domain.keep.process import Policy
from crashd.domain.units import Amount, parse_bytes, parse_duration

__all__ = ["Section", "Settings", "ValidationError", "known_keys", "split_listen"]

_MIB, _SECOND_NS, _DAY_NS = 1 << 20, 10**9, 86400 * 10**9


class Section(BaseModel):
    """One table of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Capture(Section):
    """How crashes of processes are taken from the kernel."""

    mode: Annotated[Literal["auto", "pipe", "socket"], one_of("auto", "pipe", "socket")] = "auto"
    """How the kernel hands over a core. "pipe" starts `crashd-core` for each crash, which keeps it
    by itself while crashd is away. "socket" (Linux 6.17 and later) lets the kernel connect to
    crashd: no program is started, which is ten times as fast for a small process, but a crash is
    lost when nobody listens, so the socket should be systemd's (crashd-kernel.socket). "auto" is
    "socket" where systemd passes that socket and the kernel tells signal and code of a crash
    without its notes (6.19), and "pipe" everywhere else."""

    engine: Annotated[Literal["auto", "memory", "stream"], one_of("auto", "memory", "stream")] = (
        "auto"
    )
    """How a core is read. "stream" reads all of what the kernel writes, pages never used included.
    "memory" reads what is in use directly from the process, which the kernel holds meanwhile, and
    makes of it the same core to the byte; where anything casts a doubt on that it falls back to the
    stream. "auto" is "memory" for all but the smallest cores, which the stream brings sooner."""

    buffer: Annotated[str | int, SIZE_OR_AUTO] = "auto"
    """How much memory all captures together may use to let processes go before their cores are
    compressed. What does not fit is read as fast as it can be stored. "auto" is an eighth of the
    machine's memory, but at least 64M and at most 4G. Never more is used than half of what is
    available at the time."""

    page_timeout: Annotated[str | int, duration(_SECOND_NS // 10, 600 * _SECOND_NS)] = "5s"
    """The longest time for one read of memory that a file system, or the process itself by FUSE or
    userfaultfd, has to bring in. What does not answer is zeros in the core, which is marked as
    truncated."""

    keep: Annotated[Literal["full", "mini", "metadata"], one_of("full", "mini", "metadata")] = (
        "full"
    )
    """How much is kept of a crash: the "full" core, a "mini" core (all threads' stacks, and what a
    debugger needs to name the functions on them), or "metadata" only. The limiter may keep less."""

    rules: Annotated[tuple[str, ...], RULES] = ()
    """Exceptions from `keep`, the first that fits counts: "DISPOSITION FIELD=PATTERN ...", where
    the fields are exe, unit, uid, signal (such as SIGABRT) and comm, and the patterns are those of
    the shell: "mini exe=/usr/lib/chromium/*", "metadata unit=batch-*.service uid=1000"."""

    workers: Annotated[int | Literal["auto"], whole(1, 64, auto=True)] = "auto"
    """How many crashes are captured at the same time, each by a process of its own. "auto" is the
    number of CPUs, but at least 2 and at most 8."""

    max_core: Annotated[str | int, SIZE_OR_INFINITY] = "32G"
    """The largest core that is kept, before compression; a larger one is cut and marked as
    truncated. Holes do not count: memory that was mapped and never used. What a core that is cut
    has of its memory begins with the stacks, where it can be read directly. Below 4K no core is
    kept, only what is known about the crash."""

    deadline: Annotated[str | int, duration(_SECOND_NS, _DAY_NS)] = "5min"
    """The longest time that one capture may take; what has been read of the core until then is kept
    and marked as truncated. The crashed process cannot be restarted in the meantime."""

    rlimit: Annotated[Literal["honour", "ignore"], one_of("honour", "ignore")] = "honour"
    """Whether the crashed process's own soft limit RLIMIT_CORE (`ulimit -c`, LimitCORE= of its
    unit) cuts its core as `max_core` does. With "honour" a process whose limit is 0 leaves no core,
    only what is known about the crash."""

    queue: Annotated[int, whole(1, 4096)] = 128
    """How many crashes may wait for a worker. Each keeps its process from being restarted; of those
    above it `crashd-core` writes the core to the spool by itself."""

    pipe_limit: Annotated[int | Literal["auto"], whole(1, 10000, auto=True)] = "auto"
    """The value of the sysctl kernel.core_pipe_limit, the number of processes that may dump core at
    the same time; the kernel drops the crashes above it. Each of them stays in memory until its
    capture is done, together with a `crashd-core` of about 10 MB. "auto" is one for each 64 MiB of
    the machine's memory, but at least 32 and at most 512."""

    snapshot_timeout: Annotated[str | int, duration(_SECOND_NS // 10, 60 * _SECOND_NS)] = "2s"
    """The longest time for reading /proc/PID of the crashed process, which it can make endless.
    What has not been read by then is left out."""

    compression_level: Annotated[int, whole(1, 19)] = 3
    """The level of zstd at which cores are stored. A higher level makes smaller files and longer
    captures."""

    threads: Annotated[int | Literal["auto"], whole(0, 64, auto=True)] = "auto"
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

    full: Annotated[int, whole(0, 1_000_000)] = 5
    """How many are kept as the rules say."""

    mini: Annotated[int, whole(0, 1_000_000)] = 20
    """How many more are kept as mini cores; all others are only counted."""

    per: Annotated[str | int, duration(_SECOND_NS, 366 * _DAY_NS)] = "1h"
    """The time in which as many are kept again."""

    @property
    def rate(self) -> Rate:
        """The keys as one value."""
        return Rate(self.full, self.mini, parse_duration(self.per))


class LimiterUnit(Section):
    """Crashes of one user in one unit of systemd."""

    full: Annotated[int, whole(0, 1_000_000)] = 20
    """How many are kept as the rules say."""

    mini: Annotated[int, whole(0, 1_000_000)] = 100
    """How many more are kept as mini cores; all others are only counted."""

    per: Annotated[str | int, duration(_SECOND_NS, 366 * _DAY_NS)] = "1h"
    """The time in which as many are kept again."""

    @property
    def rate(self) -> Rate:
        """The keys as one value."""
        return Rate(self.full, self.mini, parse_duration(self.per))


class LimiterUid(Section):
    """All crashes of one user. Each container that root runs counts by itself, for each user in it,
    so that it costs no user of the host anything; all containers of one user id together have four
    times as much. What runs in a user namespace counts for its user."""

    full: Annotated[int, whole(0, 1_000_000)] = 100
    """How many are kept as the rules say."""

    mini: Annotated[int, whole(0, 1_000_000)] = 500
    """How many more are kept as mini cores; all others are only counted."""

    per: Annotated[str | int, duration(_SECOND_NS, 366 * _DAY_NS)] = "1h"
    """The time in which as many are kept again."""

    @property
    def rate(self) -> Rate:
        """The keys as one value."""
        return Rate(self.full, self.mini, parse_duration(self.per))


class Limiter(Section):
    """How many crashes of the same kind are kept: a program in a crash loop shall cost neither the
    disk nor other programs' cores. Each crash is recorded in any case, and `crashctl info` says
    what was not kept, and why."""

    enabled: Annotated[bool, FLAG] = True
    """Whether there are any limits."""

    site: LimiterSite = LimiterSite()
    unit: LimiterUnit = LimiterUnit()
    uid: LimiterUid = LimiterUid()

    def rates(self) -> dict[Scope, Rate]:
        """Tell the limits; none when it is off."""
        if not self.enabled:
            return {}
        return rates_of(self.site.rate, self.unit.rate, self.uid.rate)


class RetentionProcess(Section):
    """How long the crashes of processes are kept. What is deleted first is the core; what is known
    of the crash stays for longer. Pinned crashes stay, and so does the newest; of crashes with one
    signature the first and the newest go last. The user who uses most loses first, and of one user
    the unit that does; subordinate uids (/etc/subuid) count for the user who has them."""

    max_use: Annotated[Amount | Literal["infinity"], AMOUNT_OR_INFINITY] = Amount(
        thousandths=10_000
    )
    """How much all of them together may use. A share is one of the whole file system."""

    keep_free: Annotated[Amount, AMOUNT] = Amount(thousandths=10_000)
    """How much of the store's file system always stays free: no core is begun, and one that is
    being written is cut, where it would leave less. A share is one of the whole file system,
    whatever its size. The same share of inodes stays free."""

    max_count: Annotated[int | Literal["infinity"], whole_or_infinity(1, 10_000_000)] = 10_000
    """How many crashes keep their cores."""

    max_age: Annotated[str | int, duration(3600 * _SECOND_NS, 36600 * _DAY_NS, infinity=True)] = (
        "90d"
    )
    """How long a core is kept."""

    max_per_signature: Annotated[int | Literal["infinity"], whole_or_infinity(1, 10_000_000)] = 20
    """How many of a user's crashes with one signature keep their cores: the first, and the newest
    ones."""

    metadata_max_age: Annotated[
        str | int, duration(3600 * _SECOND_NS, 36600 * _DAY_NS, infinity=True)
    ] = "366d"
    """How long it is remembered that a crash was, which has no core (any more)."""

    @property
    def policy(self) -> Policy:
        """The keys as limits."""
        return Policy(
            max_use=None if self.max_use == "infinity" else self.max_use,
            keep_free=self.keep_free,
            max_count=None if self.max_count == "infinity" else self.max_count,
            max_age_ns=None if self.max_age == "infinity" else parse_duration(self.max_age),
            max_per_signature=None
            if self.max_per_signature == "infinity"
            else self.max_per_signature,
            metadata_max_age_ns=None
            if self.metadata_max_age == "infinity"
            else parse_duration(self.metadata_max_age),
        )


class RetentionKernel(Section):
    """How long dumps of the kernel's own crashes are kept. The newest whole dump is never deleted,
    nor one that is pinned, being written, or not root's own."""

    max_count: Annotated[int | Literal["auto"], whole(0, 100_000, auto=True)] = "auto"
    """How many whole dumps are kept, and as many that are not whole; 0 keeps all. "auto" is what
    the tool that saves them is set to: KDUMP_NUM_DUMPS of /etc/default/kdump-tools, or
    KDUMP_KEEP_OLD_DUMPS of /etc/sysconfig/kdump."""

    max_use: Annotated[str | int, SIZE_OR_INFINITY] = "infinity"
    """How much all of them together may use; the oldest go, those that are not whole first."""

    keep_free: Annotated[Amount, AMOUNT] = Amount(thousandths=5000)
    """How much of their file system stays free: as for `max_use`."""

    max_age: Annotated[str | int, duration(_DAY_NS // 24, 36600 * _DAY_NS, infinity=True)] = (
        "infinity"
    )
    """What is older goes."""

    def policy(self, total_bytes: int, tool_count: int | None) -> KernelPolicy:
        """Resolve to numbers, for a file system of such a size and a tool that keeps so many."""
        auto = tool_count if tool_count is not None else 0
        infinite_age = self.max_age == "infinity"
        return KernelPolicy(
            max_count=auto if self.max_count == "auto" else self.max_count,
            max_use_bytes=0 if self.max_use == "infinity" else parse_bytes(self.max_use),
            keep_free_bytes=self.keep_free.of(total_bytes),
            max_age_ns=0 if infinite_age else parse_duration(self.max_age),
        )


class Retention(Section):
    """What is kept, and for how long."""

    process: RetentionProcess = RetentionProcess()
    kernel: RetentionKernel = RetentionKernel()


class Kdump(Section):
    """Where crashes of the kernel itself are found."""

    paths: Annotated[str | tuple[str, ...], PATHS] = "auto"
    """Directories that kernel dumps are saved in. "auto" is /var/crash, and what KDUMP_COREDIR of
    /etc/default/kdump-tools, `path` of /etc/kdump.conf and KDUMP_SAVEDIR of /etc/sysconfig/kdump
    name. An empty array turns it off."""

    rescan: Annotated[str | int, duration(_SECOND_NS, _DAY_NS)] = "1min"
    """How often these are looked at where no event told of a change (network file systems tell of
    none)."""

    live: Annotated[bool, FLAG] = True
    """Whether oopses, warnings and lockups that the kernel survives are recorded, from its log."""

    vmlinux_dirs: Annotated[tuple[str, ...], DIRECTORIES] = ()
    """Directories with kernels' vmlinux files, beside the usual places below /usr/lib/debug and
    /lib/modules: `vmlinux-RELEASE`, `RELEASE/vmlinux` (each also with `.debug`), `vmlinux`, or by
    build-id as in analysis.build_id_dirs, which are searched too. Only the one with the dump's own
    build-id is used, and only where nobody but root can change it."""

    @property
    def rescan_ns(self) -> int:
        """`rescan` in nanoseconds."""
        return parse_duration(self.rescan)


class Analysis(Section):
    """How crashes are explained: by a process of its own for each, which may do nothing but read
    the core and the debug information of what is in it."""

    enabled: Annotated[bool, FLAG] = True
    """Whether crashes are analysed as they come, and at the word of `crashctl analyze`."""

    timeout: Annotated[str | int, duration(_SECOND_NS, 3600 * _SECOND_NS)] = "1min"
    """The longest time that one analysis may take, and the CPU time that it may use."""

    memory: Annotated[str | int, SIZE] = "512M"
    """How much memory one analysis may use, beyond its libraries."""

    workers: Annotated[int, whole(1, 16)] = 1
    """How many analyses are done at the same time. They wait while crashes are being captured."""

    python: Annotated[bool, FLAG] = True
    """Whether the stacks of Python programs are shown in Python's own terms too."""

    build_id_dirs: Annotated[tuple[str, ...], DIRECTORIES] = ()
    """Directories with files by build-id, beside /usr/lib/debug: `.build-id/ab/cdef` is an
    executable or library, `.build-id/ab/cdef.debug` its debug information. Of them, an analysis
    uses what the crashed user could read."""

    debuginfod: Annotated[bool, FLAG] = False
    """Whether the debugger of `crashctl debug` may fetch missing files by build-id from the servers
    in DEBUGINFOD_URLS."""

    @property
    def build_id_dirs_bytes(self) -> tuple[bytes, ...]:
        """`build_id_dirs` as the kernel takes them."""
        return tuple(path.encode() for path in self.build_id_dirs)

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return parse_duration(self.timeout) / 1e9

    @property
    def memory_bytes(self) -> int:
        """`memory` in bytes."""
        return parse_bytes(self.memory)


class Hooks(Section):
    """Who is told of a crash besides the journal. Executables in /etc/crashd/hooks.d, root's and
    writable by nobody else, are run in the order of their names, with what `crashctl info --json`
    tells, but for the longest parts, on standard input."""

    url: Annotated[str, URL] = ""
    """Where the same JSON is sent by HTTP POST; "" is nowhere. Redirects are not followed."""

    timeout: Annotated[str | int, duration(_SECOND_NS, 600 * _SECOND_NS)] = "10s"
    """The longest time for each hook; then it is killed."""

    per_hour: Annotated[int, whole(0, 100_000)] = 60
    """For how many crashes of one user, or of one user in one container, hooks are run in an hour;
    the others are only counted, in crashd_dropped_total{reason="notice"}. Repeats of what crashed
    within the hour have half of it, so that something new goes out. All users together have ten
    times as much, users of the system (up to uid 999) as much again. Hooks are run for each crash
    of the kernel, and for none of which the limiter keeps nothing (crashd_limited_total)."""

    per_signature: Annotated[int, whole(1, 100_000)] = 10
    """Of these, how many may have the same signature."""

    wait: Annotated[str | int, duration(0, 3600 * _SECOND_NS)] = "5s"
    """How long the journal and hooks wait for what the analysis finds. After that they are told
    without it, of a crash whose `analysis` is {"state": "pending"}, and not once more when it is
    there: `crashctl info` has it then."""

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return parse_duration(self.timeout) / 1e9

    @property
    def wait_seconds(self) -> float:
        """`wait` in seconds."""
        return parse_duration(self.wait) / 1e9


class Http(Section):
    """The server of /metrics, /-/healthy and /-/ready."""

    listen: Annotated[str, LISTEN] = "127.0.0.1:9816"
    """The address that it listens on; port 0 takes any free port, "off" or "" turns the server off.
    Takes effect when crashd starts, and not at all where systemd passes it a socket."""

    web_config: Annotated[str, PATH] = ""
    """A file that says by which certificate the server speaks TLS, and who may ask it, in the form
    that Prometheus itself and its exporters have for it (tls_server_config, basic_auth_users,
    http_server_config); "" is none. Only root may be able to change it. It is read again, with the
    certificates, when crashd reloads; where something in it is wrong at the start, the server does
    not serve until it is mended and crashd reloads."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None when the server is off."""
        return split_listen(self.listen) if self.listen else None


class Privacy(Section):
    """What is stored of what a crashed process knew."""

    environ: Annotated[Literal["scrub", "drop", "keep"], one_of("scrub", "drop", "keep")] = "scrub"
    """What becomes of its environment. "scrub" stores it without the values that look like secrets,
    "drop" stores none of it, "keep" all. The core, which only those who may read it can see, holds
    the environment in any case."""

    patterns: Annotated[tuple[str, ...], PATTERNS] = ()
    """Names of more variables whose values "scrub" takes out: shell patterns such as "ACME_*",
    upper and lower case being the same."""


class Log(Section):
    """What crashd says about itself."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], one_of("debug", "info", "warning", "error")
    ] = "info"
    """The least important messages that are logged."""


class Settings(Section):
    """The whole configuration: what the operator wants, defaults included."""

    capture: Capture = Capture()
    limiter: Limiter = Limiter()
    retention: Retention = Retention()
    kdump: Kdump = Kdump()
    analysis: Analysis = Analysis()
    hooks: Hooks = Hooks()
    http: Http = Http()
    privacy: Privacy = Privacy()
    log: Log = Log()


def known_keys(model: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """List every dotted key, sections included, in the order of the model."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
