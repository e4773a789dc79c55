"""The settings for kernel dumps, from the configuration and from the dump makers' own files."""

from dataclasses import dataclass, field
from pathlib import Path

from crashd.configuration import keys as config
from crashd.daemon.after.afterwards import analysis_settings
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.domain.kdump.ready import dump_paths
from crashd.domain.keep.kernel import KernelPolicy
from crashd.edge.host.kdumpfacts import read_facts
from crashd.store.paths import Paths


@dataclass(frozen=True, slots=True)
class DumpSettings:
    """Where dumps are, how to read them, and which of them to keep."""

    paths: tuple[Path, ...] = ()
    rescan_ns: int = 60 * 10**9
    analysis: AnalysisOptions | None = None
    """How to read a log from a dump; None: do not read it."""
    worker: AnalysisOptions | None = None
    """How to read a compressed dump to its end; None: do not, so its end stays unknown."""
    vmlinux_dirs: tuple[str, ...] = ()
    """Directories with kernels' vmlinux files, besides the usual places."""
    retention: config.RetentionKernel = field(default_factory=config.RetentionKernel)
    tool_count: int | None = None
    """How many dumps the tool that saves them is set to keep."""

    def policy(self, total_bytes: int) -> KernelPolicy:
        """Return what to keep on a file system of this size."""
        return self.retention.policy(total_bytes, self.tool_count)


class KernelSettings:
    """The current configuration; the daemon's loop sets it, the dumps' thread resolves it."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._settings = config.Settings()

    def configure(self, settings: config.Settings) -> None:
        """Take new settings."""
        self._settings = settings

    @property
    def live(self) -> bool:
        """Whether reports of the running kernel are recorded."""
        return self._settings.kdump.live

    def resolve(self) -> DumpSettings:
        """Read the dump makers' own files again: they may have changed since the last scan."""
        facts, settings = read_facts(self._paths.root), self._settings
        wanted = settings.kdump.paths
        named = dump_paths(facts) if isinstance(wanted, str) else wanted
        analysis = analysis_settings(settings, self._paths)
        return DumpSettings(
            paths=tuple(self._paths.root / path.lstrip("/") for path in named),
            rescan_ns=settings.kdump.rescan_ns,
            analysis=analysis.options if analysis.enabled else None,
            worker=analysis.options,
            vmlinux_dirs=(
                *settings.kdump.vmlinux_dirs,
                *settings.analysis.build_id_dirs,
                f"/{self._paths.debug_cache.relative_to(self._paths.root)}",
            ),
            retention=settings.retention.kernel,
            tool_count=facts.tool_count,
        )
