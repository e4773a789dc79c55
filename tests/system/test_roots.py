"""Several daemons on one host: the kernel's settings are in the end as before the first."""

from pathlib import Path

from crashd.edge.host import sysctl
from tests.running import Daemon

NAMES = (sysctl.PATTERN, sysctl.PIPE_LIMIT, sysctl.SUID_DUMPABLE)


def settings() -> list[str]:
    return [sysctl.read(name) for name in NAMES]


def test_roots_stopped_in_the_wrong_order_leave_what_was_before(
    short_tmp: Path, core_pattern_owner: None
) -> None:
    del core_pattern_owner
    before = settings()
    with Daemon(short_tmp / "a") as first, Daemon(short_tmp / "b") as second:
        assert str(second.paths.root) in settings()[0]
        first.stop()
        assert str(second.paths.root) in settings()[0]
        assert settings()[2] == "2"
        second.stop()
        assert settings() == before


def test_pattern_that_another_sets_meanwhile_stays_and_the_companions_go_back(
    short_tmp: Path, core_pattern_owner: None
) -> None:
    del core_pattern_owner
    before = settings()
    with Daemon(short_tmp / "a"):
        sysctl.write(sysctl.PATTERN, "core.%p")
        assert settings()[2] == "2"
    assert settings() == ["core.%p", *before[1:]]
