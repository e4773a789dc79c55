from pathlib import Path

from crashd.edge.host.hostfacts import AUDIT_MAX, read_denials
from tests.unit.domain.host.test_denials import AVC, NOW


def test_read_denials_reads_the_end_of_auditds_log(tmp_path: Path) -> None:
    log = tmp_path / "var/log/audit/audit.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(AVC + b"\n" + b"x" * AUDIT_MAX + b"\n" + AVC + b"\n")
    assert read_denials(tmp_path, NOW).active == ()
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    found = read_denials(tmp_path, NOW)
    assert (found.active, found.readable, found.enforced) == (("SELinux",), True, 1)
    log.unlink()
    assert not read_denials(tmp_path, NOW).readable
    (tmp_path / "elsewhere").write_bytes(AVC)
    log.symlink_to(tmp_path / "elsewhere")
    assert not read_denials(tmp_path, NOW).readable
