"""Every path that crashd touches, from one root (DESIGN section 2).

Not a dataclass, because crashctl loads this at each call, and dataclasses take as long as all else.
For the same reason pathlib is loaded with the first Path, not with this module.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from pathlib import Path

STATE_DIR = "var/lib/crashd"
CRASHES = "crashes"
INDEX_NAME = "index.sqlite"
KEPT_FILES = "files"
"""A directory among those of the crashes."""


class Paths:
    """The file system layout below `root`: "/" on a host, a private one in a trial or test."""

    __slots__ = ("crashes", "root", "spool", "state", "state_dir")

    def __init__(self, root: Path, state: Path | None = None) -> None:
        self.root = root
        self.state = state
        """Another `state_dir`, as of a copy of a store."""
        self.state_dir = state or root / STATE_DIR
        """0700; everything that outlives a boot."""
        # those asked for in a storm; joining a path takes 10 us
        self.crashes = self.state_dir / CRASHES
        """One directory for each crash, named by its id."""
        self.spool = self.state_dir / "spool"
        """Crashes that the handler kept itself while the daemon was away."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and (self.root, self.state) == (other.root, other.state)

    def __hash__(self) -> int:
        return hash((self.root, self.state))

    def __repr__(self) -> str:
        return f"Paths({self.root!r}, {self.state!r})"

    @property
    def handler(self) -> Path:
        """The crash-time handler, as named in kernel.core_pattern."""
        return self.root / "usr/libexec/crashd-core"

    @property
    def handler_fallback(self) -> Path:
        """The Python handler, which the native one execs on any trouble."""
        return self.handler.with_name("crashd-core.py")

    @property
    def config_file(self) -> Path:
        """The main configuration file; its drop-ins are in `config_dropins`."""
        return self.root / "etc/crashd/crashd.toml"

    @property
    def config_dropins(self) -> Path:
        """Directory of `*.toml` drop-ins, read in name order after `config_file`."""
        return self.root / "etc/crashd/crashd.toml.d"

    @property
    def kept_files(self) -> Path:
        """Executables and libraries that only crashed processes could reach."""
        return self.crashes / KEPT_FILES

    @property
    def index(self) -> Path:
        """SQLite; a cache of `crashes`."""
        return self.state_dir / INDEX_NAME

    @property
    def outbox(self) -> Path:
        """SQLite; which revisions of crashes were sent to the fleet's store, and which wait."""
        return self.state_dir / "outbox.sqlite"

    @property
    def limiter_state(self) -> Path:
        """How much of each crash loop has been kept; JSON."""
        return self.state_dir / "limiter.json"

    @property
    def pending_deletions(self) -> Path:
        """The crashes that retention is deleting; flock(2)ed by the process that deletes."""
        return self.state_dir / "retention.pending"

    @property
    def kernel_log_state(self) -> Path:
        """How far the kernel's log has been read; JSON."""
        return self.state_dir / "kernel-log.json"

    @property
    def pstore_state(self) -> Path:
        """The pstore events that were recorded, or need no record; JSON."""
        return self.state_dir / "pstore.json"

    @property
    def previous_core_pattern(self) -> Path:
        """The values of kernel.core_pattern and its companions before crashd registered."""
        return self.state_dir / "previous-core-pattern"

    @property
    def debug_cache(self) -> Path:
        """What crashctl fetched from debuginfod: `.build-id/ab/cdef.debug`; root's alone."""
        return self.root / "var/cache/crashd/debug"

    @property
    def runtime_dir(self) -> Path:
        """0755 (control.sock is for everyone); nothing in it outlives a boot."""
        return self.root / "run/crashd"

    @property
    def handoff_socket(self) -> Path:
        """SOCK_SEQPACKET, 0600: from the handler."""
        return self.runtime_dir / "handoff.sock"

    @property
    def kernel_socket(self) -> Path:
        """SOCK_STREAM, 0600: from the kernel itself, if `capture.mode` is "socket"."""
        return self.runtime_dir / "kernel.sock"

    @property
    def hooks(self) -> Path:
        """Programs run for each crash."""
        return self.root / "etc/crashd/hooks.d"

    @property
    def hooks_socket(self) -> Path:
        """SOCK_STREAM, 0600: held by systemd, which runs the hooks for each connection."""
        return self.runtime_dir / "hooks.sock"

    @property
    def analyze_socket(self) -> Path:
        """SOCK_STREAM, 0600: held by systemd, which starts an analysis worker per connection."""
        return self.runtime_dir / "analyze.sock"

    @property
    def ship_socket(self) -> Path:
        """SOCK_SEQPACKET, 0600: to crashd-ship; held by systemd, or made by crashd-ship."""
        return self.runtime_dir / "ship.sock"

    @property
    def machine_id(self) -> Path:
        """The host's machine id (machine-id(5))."""
        return self.root / "etc/machine-id"

    @property
    def control_socket(self) -> Path:
        """SOCK_STREAM, 0666: from crashctl, authorised by peer credentials."""
        return self.runtime_dir / "control.sock"

    @property
    def daemon_lock(self) -> Path:
        """flock(2)ed by the daemon that owns this root; holds its pid."""
        return self.runtime_dir / "daemon.lock"

    @property
    def registered_marker(self) -> Path:
        """Exists while the running daemon, not `crashctl install`, holds kernel.core_pattern."""
        return self.runtime_dir / "registered-by-daemon"

    @property
    def kernel_dumps(self) -> Path:
        """Where kdump saves the kernel's own crashes."""
        return self.root / "var/crash"
