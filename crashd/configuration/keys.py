"""The configuration: the keys of crashd.toml.

The classes below are the only list of keys. packaging/genconfig.py makes etc/crashd.toml and the
man page from them: operators read the docstrings of the fields. values.py defines the allowed
values, files.py reads the files. May import domain and errors. Loads pydantic, which is slow:
import this module only where it is needed. Over 400 lines, because it is one list.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from crashd.configuration.values import (
    AMOUNT,
    AMOUNT_OR_INFINITY,
    BANDWIDTH,
    DIRECTORIES,
    FLAG,
    LABELS,
    LISTEN,
    PATH,
    PATHS,
    PATTERNS,
    RECIPIENTS,
    RULES,
    SIZE,
    SIZE_OR_AUTO,
    SIZE_OR_INFINITY,
    STORE_URL,
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
from crashd.domain.keep.policy import Rule as Rule
from crashd.domain.keep.policy import parse_rule
from crashd.domain.keep.process import Policy
from crashd.domain.units import Amount, parse_bytes, parse_duration

__all__ = ["Section", "Settings", "ValidationError", "known_keys", "split_listen"]

_MIB, _SECOND_NS, _DAY_NS = 1 << 20, 10**9, 86400 * 10**9


class Section(BaseModel):
    """One table of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CaptureSection(Section):
    """How crashd takes process crashes from the kernel."""

    mode: Annotated[Literal["auto", "pipe", "socket"], one_of("auto", "pipe", "socket")] = "auto"
    """How the kernel hands over a core. "pipe" starts `crashd-core` for each crash, which spools
    the crash itself while crashd does not run. "socket" (Linux 6.17 and later) lets the kernel
    connect to crashd. No program is started, which is ten times as fast for a small process, but a
    crash is lost if nothing listens, so systemd should own the socket (crashd-kernel.socket).
    "auto" is "socket" if systemd passes that socket and the kernel reports signal and code of a
    crash outside its notes (6.19), and "pipe" everywhere else."""

    engine: Annotated[Literal["auto", "memory", "stream"], one_of("auto", "memory", "stream")] = (
        "auto"
    )
    """How a core is read. "stream" reads everything that the kernel writes, including pages never
    used. "memory" reads the pages in use directly from the process, while the kernel holds it, and
    builds the same core from them, byte for byte (but for memory behind a protection key, see
    pkeys(7): it has what is there, and the kernel's own has zeros); in case of any doubt it falls
    back to the stream. "auto" is "memory" for all but the smallest cores, which the stream delivers
    sooner."""

    buffer: Annotated[str | int, SIZE_OR_AUTO] = "auto"
    """How much memory all captures together may use to let processes go before their cores are
    compressed. A capture gets at most half of what is free of it; what does not fit goes to
    `spill`. A quarter is never given to cores above 64M, so that a small one finds room whatever
    else goes on. "auto" is an eighth of the machine's memory, but at least 64M and at most 4G.
    Never more is used than half of what is available at the time."""

    spill: Annotated[Amount, AMOUNT] = Amount(thousandths=50_000)
    """How much of the store's file system all captures together may use for what `buffer` has no
    room for: it is written there as it is, in files without names, and compressed once the process
    is let go. A capture gets at most half of what is free of it, and leaves free what
    `retention.process.keep_free` says. What does not fit is read as fast as it can be compressed,
    and so is all with 0."""

    keep_files: Annotated[Amount, AMOUNT] = Amount(size_bytes=1 << 30)
    """How much space executables and libraries may take that only a crashed process could reach:
    deleted or replaced ones (an upgrade), memfds, private mounts. They are kept with the crash, by
    build-id and each content once, so that its stack has names; they are copied after the process
    is let go, and removed with the last core that needs them. Never more than a quarter of
    `retention.process.max_use`. Files that the crashed user may not read are not kept. With 0 none
    is kept."""

    page_timeout: Annotated[str | int, duration(_SECOND_NS // 10, 600 * _SECOND_NS)] = "5s"
    """The longest time for one read of memory that a file system has to supply, or the process
    itself through FUSE or userfaultfd. Memory that does not arrive in time is zeros in the core,
    which is marked as truncated."""

    keep: Annotated[Literal["full", "mini", "metadata"], one_of("full", "mini", "metadata")] = (
        "full"
    )
    """How much of a crash is kept: the "full" core, a "mini" core (the stacks of all threads, and
    what a debugger needs to name the functions on them), or only its "metadata". The limiter may
    keep less."""

    rules: Annotated[tuple[str, ...], RULES] = ()
    """Exceptions from `keep`; the first rule that matches applies. A rule is "DISPOSITION
    FIELD=PATTERN ..."; the fields are exe, unit, uid, signal (such as SIGABRT) and comm, and the
    patterns are shell patterns: "mini exe=/usr/lib/chromium/*", "metadata unit=batch-*.service
    uid=1000"."""

    workers: Annotated[int | Literal["auto"], whole(1, 64, auto=True)] = "auto"
    """How many processes wait for the next crash. While crashes come together more are started,
    four times as many, but at least 40: a process that crashed does not wait until others' cores
    are compressed. "auto" is the number of CPUs, but at least 2 and at most 8."""

    max_core: Annotated[str | int, SIZE_OR_INFINITY] = "32G"
    """The largest core that is kept, before compression; a larger one is cut and marked as
    truncated. Holes, which are memory mapped but never used, do not count. If memory can be read
    directly, a core that is cut holds the stacks first. Below 4K no core is kept, only the metadata
    of the crash."""

    deadline: Annotated[str | int, duration(_SECOND_NS, _DAY_NS)] = "5min"
    """The longest time that one capture may take; the part of the core read until then is kept and
    marked as truncated. The crashed process cannot be restarted in the meantime."""

    rlimit: Annotated[Literal["honour", "ignore"], one_of("honour", "ignore")] = "honour"
    """Whether the crashed process's own soft limit RLIMIT_CORE (`ulimit -c`, LimitCORE= of its
    unit) cuts its core as `max_core` does. With "honour", a process with a limit of 0 leaves no
    core, only the metadata of the crash."""

    queue: Annotated[int, whole(1, 4096)] = 128
    """How many crashes may wait for a worker. A waiting crash keeps its process from being
    restarted; beyond this number, `crashd-core` spools the core itself."""

    pipe_limit: Annotated[int | Literal["auto"], whole(1, 10000, auto=True)] = "auto"
    """The value of the sysctl kernel.core_pipe_limit, the number of processes that may dump core at
    the same time; the kernel drops crashes beyond it. Each process stays in memory until its
    capture is done, together with a `crashd-core` of about 10 MB. "auto" is one process per 64 MiB
    of the machine's memory, but at least 32 and at most 512."""

    snapshot_timeout: Annotated[str | int, duration(_SECOND_NS // 10, 60 * _SECOND_NS)] = "2s"
    """The longest time for reading /proc/PID of the crashed process, which the process can make
    endless. Whatever has not been read by then is left out."""

    compression_level: Annotated[int, whole(1, 19)] = 3
    """The zstd level of stored cores. A higher level means smaller files and longer captures."""

    threads: Annotated[int | Literal["auto"], whole(0, 64, auto=True)] = "auto"
    """How many threads compress one core; with 0 the worker compresses it itself. "auto" is the
    number of CPUs, but at most 4."""

    @property
    def max_core_bytes(self) -> int | None:
        """`max_core` in bytes; None without a limit."""
        return None if self.max_core == "infinity" else parse_bytes(self.max_core)

    def buffer_bytes(self, memory_bytes: int) -> int:
        """Resolve `buffer` for a host with this much memory."""
        if self.buffer == "auto":
            return max(64 * _MIB, min(memory_bytes // 8, 4096 * _MIB))
        return parse_bytes(self.buffer)

    @property
    def policy(self) -> tuple[Rule, ...]:
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
        """Resolve `workers` for a host with this many CPUs."""
        return max(2, min(cpus, 8)) if self.workers == "auto" else self.workers

    def thread_count(self, cpus: int) -> int:
        """Resolve `threads` for a host with this many CPUs."""
        return min(cpus, 4) if self.threads == "auto" else self.threads

    def pipe_limit_for(self, memory_bytes: int) -> int:
        """Resolve `pipe_limit` for a host with this much memory."""
        if self.pipe_limit != "auto":
            return self.pipe_limit
        return max(32, min(memory_bytes // (64 * _MIB), 512))


class LimiterSite(Section):
    """Crashes of one user's executable with the same signal at the same place in its code."""

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
    """Crashes of one user in one systemd unit."""

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
    """All crashes of one user. Each container that root runs has its own count for each user in it,
    so that it takes nothing from users of the host; all containers of one user id together have
    four times as much. A process in a user namespace counts for the user who created it."""

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


class LimiterSection(Section):
    """How many crashes of the same kind are kept, so that a program in a crash loop neither fills
    the disk nor displaces the cores of other programs. Each crash is recorded in any case, and
    `crashctl info` shows what was not kept, and why."""

    enabled: Annotated[bool, FLAG] = True
    """Whether these limits apply."""

    site: LimiterSite = LimiterSite()
    unit: LimiterUnit = LimiterUnit()
    uid: LimiterUid = LimiterUid()

    def rates(self) -> dict[Scope, Rate]:
        """Return the limits; an empty dict if they are disabled."""
        if not self.enabled:
            return {}
        return rates_of(self.site.rate, self.unit.rate, self.uid.rate)


class RetentionProcess(Section):
    """How long process crashes are kept. The core is deleted first; the metadata of the crash stays
    longer. Pinned crashes are never deleted, nor is the newest crash; among crashes with one
    signature, the first and the newest go last. The user who uses most space loses cores first, and
    within one user the unit that uses most; subordinate uids (/etc/subuid) count for the user who
    owns them."""

    max_use: Annotated[Amount | Literal["infinity"], AMOUNT_OR_INFINITY] = Amount(
        thousandths=10_000
    )
    """How much space all of them together may use. A share is a share of the whole file system."""

    keep_free: Annotated[Amount, AMOUNT] = Amount(thousandths=10_000)
    """How much of the store's file system always stays free: a core that would leave less is not
    begun, and one that is being written is cut. A share is a share of the whole file system,
    whatever its size. The same share of inodes stays free."""

    max_count: Annotated[int | Literal["infinity"], whole_or_infinity(1, 10_000_000)] = 10_000
    """How many crashes keep their cores."""

    max_age: Annotated[str | int, duration(3600 * _SECOND_NS, 36600 * _DAY_NS, infinity=True)] = (
        "90d"
    )
    """How long a core is kept."""

    max_per_signature: Annotated[int | Literal["infinity"], whole_or_infinity(1, 10_000_000)] = 20
    """How many crashes of one user with the same signature keep their cores: the first, and the
    newest ones.
    """

    metadata_max_age: Annotated[
        str | int, duration(3600 * _SECOND_NS, 36600 * _DAY_NS, infinity=True)
    ] = "366d"
    """How long the metadata of a crash without a core is kept."""

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
    """How long dumps of kernel crashes are kept. Never deleted are the newest complete dump, and
    dumps that are pinned, are being written, or do not belong to root."""

    max_count: Annotated[int | Literal["auto"], whole(0, 100_000, auto=True)] = "auto"
    """How many complete dumps are kept, and the same number of incomplete ones; 0 keeps all. "auto"
    follows the tool that saves them: KDUMP_NUM_DUMPS of /etc/default/kdump-tools, or
    KDUMP_KEEP_OLD_DUMPS of /etc/sysconfig/kdump."""

    max_use: Annotated[str | int, SIZE_OR_INFINITY] = "infinity"
    """How much space all of them together may use; incomplete dumps are deleted first, then the
    oldest.
    """

    keep_free: Annotated[Amount, AMOUNT] = Amount(thousandths=5000)
    """How much of their file system stays free; the order of deletion is that of `max_use`."""

    max_age: Annotated[str | int, duration(_DAY_NS // 24, 36600 * _DAY_NS, infinity=True)] = (
        "infinity"
    )
    """The age at which a dump is deleted."""

    def policy(self, total_bytes: int, tool_count: int | None) -> KernelPolicy:
        """Resolve the keys to numbers, for a file system and the number that the tool keeps."""
        auto = tool_count if tool_count is not None else 0
        infinite_age = self.max_age == "infinity"
        return KernelPolicy(
            max_count=auto if self.max_count == "auto" else self.max_count,
            max_use_bytes=0 if self.max_use == "infinity" else parse_bytes(self.max_use),
            keep_free_bytes=self.keep_free.of(total_bytes),
            max_age_ns=0 if infinite_age else parse_duration(self.max_age),
        )


class RetentionSection(Section):
    """What is kept, and for how long."""

    process: RetentionProcess = RetentionProcess()
    kernel: RetentionKernel = RetentionKernel()


class Kdump(Section):
    """Where crashd finds crashes of the kernel itself."""

    paths: Annotated[str | tuple[str, ...], PATHS] = "auto"
    """Directories that hold kernel dumps. "auto" is /var/crash, and the directories named by
    KDUMP_COREDIR of /etc/default/kdump-tools, `path` of /etc/kdump.conf and KDUMP_SAVEDIR of
    /etc/sysconfig/kdump. An empty array disables the search."""

    rescan: Annotated[str | int, duration(_SECOND_NS, _DAY_NS)] = "1min"
    """How often the directories are scanned even without an event, because network file systems
    report none.
    """

    live: Annotated[bool, FLAG] = True
    """Whether oopses, warnings and lockups that the kernel survives are recorded from its log."""

    vmlinux_dirs: Annotated[tuple[str, ...], DIRECTORIES] = ()
    """Directories with kernels' vmlinux files, beside the usual places below /usr/lib/debug and
    /lib/modules: `vmlinux-RELEASE`, `RELEASE/vmlinux` (each also with `.debug`), `vmlinux`, or by
    build-id as in analysis.build_id_dirs, which are searched too. Only the one with the dump's own
    build-id is used, and only where nobody but root can change it. Modules are searched there in
    `RELEASE` and `lib/modules/RELEASE`."""

    @property
    def rescan_ns(self) -> int:
        """`rescan` in nanoseconds."""
        return parse_duration(self.rescan)


class AnalysisSection(Section):
    """How crashes are explained. Each analysis runs in its own sandboxed process, which can only
    read the core and the debug information of the files mapped in it."""

    enabled: Annotated[bool, FLAG] = True
    """Whether crashes are analysed, both new ones and on `crashctl analyze`."""

    timeout: Annotated[str | int, duration(_SECOND_NS, 3600 * _SECOND_NS)] = "1min"
    """The longest time that one analysis may take; the limit of its CPU time is the same."""

    memory: Annotated[str | int, SIZE] = "512M"
    """How much memory one analysis may use, beyond its libraries."""

    workers: Annotated[int, whole(1, 16)] = 1
    """How many analyses run at the same time. They wait while crashes are being captured."""

    python: Annotated[bool, FLAG] = True
    """Whether the stacks of Python programs are also shown as Python frames."""

    build_id_dirs: Annotated[tuple[str, ...], DIRECTORIES] = ()
    """Directories, besides /usr/lib/debug, with files by build-id: `.build-id/ab/cdef` is an
    executable or library, `.build-id/ab/cdef.debug` its debug information. An analysis uses only
    files that the crashed user could read."""

    debuginfod: Annotated[bool, FLAG] = False
    """Whether the debugger of `crashctl debug` may fetch missing files by build-id from the servers
    in DEBUGINFOD_URLS. `debug` and `analyze` of a kernel crash then fetch its vmlinux, and
    `analyze` of a process crash what its stacks lack."""

    @property
    def build_id_dirs_bytes(self) -> tuple[bytes, ...]:
        """`build_id_dirs` as bytes."""
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
    """Who is notified of a crash, besides the journal. crashd runs the executables in
    /etc/crashd/hooks.d in the order of their names, if root owns them and nobody else can write
    them. Each gets the output of `crashctl info --json`, without its longest parts, on standard
    input."""

    url: Annotated[str, URL] = ""
    """The URL that gets the same JSON by HTTP POST; "" disables it. Redirects are not followed. If
    it contains a secret, put it into a file of crashd.toml.d that only root can read."""

    body: Annotated[
        Literal["json", "alertmanager", "slack", "pagerduty", "otlp"],
        one_of("json", "alertmanager", "slack", "pagerduty", "otlp"),
    ] = "json"
    """What the URL gets instead: an alert of Alertmanager (…/api/v2/alerts), a message of Slack and
    what is compatible with it, an event of PagerDuty (https://events.pagerduty.com/v2/enqueue),
    which needs a line `X-Routing-Key: KEY` in `headers_file`, or a log record of OpenTelemetry
    (OTLP over HTTP, as JSON: http://localhost:4318/v1/logs)."""

    headers_file: Annotated[str, PATH] = ""
    """A file with more headers for the URL, one `Name: value` a line, such as `Authorization:
    Bearer TOKEN`. Only root may be able to read and change it; it is read for each crash."""

    timeout: Annotated[str | int, duration(_SECOND_NS, 600 * _SECOND_NS)] = "10s"
    """The longest time that a hook may run before it is killed."""

    per_hour: Annotated[int, whole(0, 100_000)] = 60
    """For how many crashes of one user, or of one user in one container, hooks run per hour;
    further ones are only counted, in crashd_dropped_total{reason="notice"}. Repeats within the hour
    can use only half of it, so that new crashes still get through. All users together have ten
    times as much, and system users (up to uid 999) as much again. Hooks run for every crash of the
    kernel, and for no crash of which the limiter keeps nothing (crashd_limited_total)."""

    per_signature: Annotated[int, whole(1, 100_000)] = 10
    """How many of these may have the same signature."""

    wait: Annotated[str | int, duration(0, 3600 * _SECOND_NS)] = "5s"
    """How long the hooks wait for the result of the analysis. After that they get the crash without
    it, with {"state": "pending"} as its `analysis`. They are not notified again when the analysis
    is done; `crashctl info` shows the result. The journal has an entry at once, and a second one
    when the analysis is done."""

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
    """The address to listen on; port 0 takes any free port, "off" or "" disables the server. Takes
    effect when crashd starts, and is ignored if systemd passes a socket."""

    web_config: Annotated[str, PATH] = ""
    """A file that sets the server's TLS certificate and its users, in the format that Prometheus
    and its exporters use (tls_server_config, basic_auth_users, http_server_config); "" means no
    file. It must be writable by root only. crashd reads it and the certificates again on reload. If
    it is wrong at start, the server does not serve until the file is corrected and crashd
    reloads."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None if the server is disabled."""
        return split_listen(self.listen) if self.listen else None


class Privacy(Section):
    """What is stored of the data of a crashed process."""

    environ: Annotated[Literal["scrub", "drop", "keep"], one_of("scrub", "drop", "keep")] = "scrub"
    """How its environment is stored: "scrub" leaves out values that look like secrets, "drop"
    stores nothing, "keep" stores everything. The core holds the environment in any case; only users
    who may read the core see it."""

    patterns: Annotated[tuple[str, ...], PATTERNS] = ()
    """Names of further variables with values that "scrub" leaves out: shell patterns such as
    "ACME_*"; case does not matter."""


class Fleet(Section):
    """Where crashes are sent, so that one index has those of all hosts (`crashctl --fleet`).
    crashd-ship.service sends them; its credentials are the cloud's usual ones (crashd-ship(8))."""

    url: Annotated[str, STORE_URL] = ""
    """The bucket, and perhaps a prefix in it: "s3://BUCKET/PREFIX", "gs://…", "az://…", or a
    directory, "file:///…", such as a mounted share; "" sends nothing. All hosts of a fleet have the
    same one."""

    cores: Annotated[Literal["none", "mini", "full"], one_of("none", "mini", "full")] = "none"
    """What is sent of a process's core: "none", "full", or "mini", which is enough for all stacks
    (headers, notes, stacks). Records are always sent. Cores hold whatever the process had in
    memory: see `recipients`."""

    cores_per_signature: Annotated[int, whole(1, 1000)] = 3
    """How many cores of one signature this host sends. The fleet may also have enough of them, as
    its indexer publishes; `crashctl --fleet want` asks for more."""

    kernel_dumps: Annotated[bool, FLAG] = False
    """Whether the kernel's dumps are sent, too: they may hold anything that was in memory."""

    bandwidth: Annotated[str | int, BANDWIDTH] = "20M"
    """How many bytes a second are sent at most."""

    labels: Annotated[tuple[str, ...], LABELS] = ()
    """What this host is, for `crashctl --fleet --label`: such as "role=db" and "site=fra1"."""

    recipients: Annotated[tuple[str, ...], RECIPIENTS] = ()
    """Public keys in the format of age (age-keygen). If there are any, cores and environments are
    encrypted to them before they leave the host, and can be read only with one of the secret keys
    (`crashctl --fleet debug --identity FILE`)."""

    @property
    def bandwidth_bytes(self) -> int | None:
        """`bandwidth` in bytes a second; None for no limit."""
        return None if self.bandwidth == "infinity" else parse_bytes(self.bandwidth)

    @property
    def label_values(self) -> dict[str, str]:
        """`labels` by their names."""
        return dict(one.split("=", 1) for one in self.labels)


class Log(Section):
    """What crashd logs about itself."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], one_of("debug", "info", "warning", "error")
    ] = "info"
    """The lowest level that is logged."""


class Settings(Section):
    """The whole configuration, defaults included."""

    capture: CaptureSection = CaptureSection()
    limiter: LimiterSection = LimiterSection()
    retention: RetentionSection = RetentionSection()
    kdump: Kdump = Kdump()
    analysis: AnalysisSection = AnalysisSection()
    hooks: Hooks = Hooks()
    http: Http = Http()
    privacy: Privacy = Privacy()
    fleet: Fleet = Fleet()
    log: Log = Log()

    @property
    def process_policy(self) -> Policy:
        """What is kept of process crashes: cores, metadata, and files."""
        return replace(self.retention.process.policy, keep_files=self.capture.keep_files)


def known_keys(model: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """List every dotted key, sections included, in the order of the model."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
