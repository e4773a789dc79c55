from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.kdump.conf import (
    CONF_MAX,
    KdumpTools,
    Severity,
    SysconfigKdump,
    find_kernel_traps,
    parse_kdump_conf,
    parse_kdump_tools,
    parse_sysconfig,
)
from crashd.domain.kdump.crashkernel import parse_crashkernel
from crashd.errors import FormatError

DATA = Path(__file__).parents[3] / "data/kdump"
MIB = 2**20


def codes(conf: KdumpTools) -> set[str]:
    return {finding.code for finding in conf.findings}


def test_parse_kdump_tools_real_file_is_read_as_kdump_config_does() -> None:
    conf = parse_kdump_tools((DATA / "kdump-tools.default").read_bytes())
    assert (conf.enabled, conf.directory, conf.max_dumps) == (True, "/var/crash", 10)
    assert (conf.saves_log, conf.compression, conf.remote) == (True, "", ())
    assert conf.arguments == ("-c", "-d", "31")
    assert (conf.problems, codes(conf)) == ((), {"other-cleaner"})


def test_parse_kdump_tools_empty_file_has_the_defaults() -> None:
    conf = parse_kdump_tools(b"")
    assert (conf.enabled, conf.directory, conf.max_dumps) == (False, "/var/crash", 0)
    assert conf.arguments == ("-F", "-c", "-d", "31")
    assert codes(conf) == {"kdump-off"}
    assert parse_kdump_tools(b"KDUMP_COREDIR=\nMAKEDUMP_ARGS=''\n").arguments == conf.arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5),
        ("' 5 '", 5),
        ("+5", 5),
        ("-5", 0),
        ("0", 0),
        ("", 0),
        ("five", 0),
        ("5x", 0),
        ("0x5", 0),
        ("$X", None),
        ("`nproc`", None),
    ],
)
def test_parse_kdump_tools_num_dumps_is_what_the_test_makes_of_it(
    text: str, expected: int | None
) -> None:
    conf = parse_kdump_tools(f"USE_KDUMP=1\nKDUMP_NUM_DUMPS=3\nKDUMP_NUM_DUMPS={text}".encode())
    assert conf.max_dumps == expected
    assert ("num-dumps-invalid" in codes(conf)) == (text in ("five", "5x", "0x5"))
    assert ("shell-computed" in codes(conf)) == (expected is None)


@pytest.mark.parametrize(
    ("text", "code", "severity"),
    [
        ('MAKEDUMP_ARGS="-c -d 31 --dump-dmesg"', "dump-dmesg", Severity.FAULT),
        ("USE_KDUMP=0", "kdump-off", Severity.FAULT),
        ("USE_KDUMP=", "kdump-off", Severity.FAULT),
        ('MAKEDUMP_ARGS="-c"', "dump-level", Severity.NOTICE),
        ('MAKEDUMP_ARGS="-p -d 31"', "compression-ignored", Severity.NOTICE),
        ('MAKEDUMP_ARGS="-z -d31"', "compression-ignored", Severity.NOTICE),
        ("KDUMP_DUMP_DMESG=0", "no-log", Severity.WARNING),
        ("KDUMP_COMPRESSION=zstd", "compression-unknown", Severity.NOTICE),
        ("KDUMP_NUM_DUMPS=3", "other-cleaner", Severity.NOTICE),
        ('NFS="h:/x"', "remote-target", Severity.NOTICE),
        ("[ -r /x ] && . /x", "shell-computed", Severity.WARNING),
        ("MAKEDUMP_ARGS=$X", "shell-computed", Severity.WARNING),
    ],
)
def test_parse_kdump_tools_trap_is_a_finding(text: str, code: str, severity: Severity) -> None:
    sound = "USE_KDUMP=1\nMAKEDUMP_ARGS='-c -d 31'\n"
    assert codes(parse_kdump_tools(sound.encode())) == set()
    conf = parse_kdump_tools((sound + text).encode())
    assert [(f.code, f.severity) for f in conf.findings] == [(code, severity)]


def test_parse_kdump_tools_purge_does_not_run_on_nfs() -> None:
    conf = parse_kdump_tools(b"USE_KDUMP=1\nKDUMP_NUM_DUMPS=3\nNFS=h:/x\n")
    assert codes(conf) == {"remote-target"}
    assert conf.remote == ("NFS",)


def test_parse_kdump_conf_is_read_as_kdump_utils_do() -> None:
    text = b"#path /no\n  path  /a \n\npath /data/crash # comment\nauto_reset_crashkernel yes\n"
    text += b'core_collector makedumpfile -l --message-level 7 -d 31\nlone\nfailure_action "x y"'
    conf = parse_kdump_conf(text)
    assert conf.directory == "/data/crash"
    assert conf.options["core_collector"] == "makedumpfile -l --message-level 7 -d 31"
    assert (conf.options["lone"], conf.options["failure_action"]) == ("", '"x y"')
    assert (conf.target, conf.findings) == (None, ())


@pytest.mark.parametrize("text", [b"", b"# path /x\n", b"path\n"])
def test_parse_kdump_conf_without_path_has_the_default(text: bytes) -> None:
    assert parse_kdump_conf(text).directory == "/var/crash"


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"ssh kdump@host", ("ssh", "kdump@host")),
        (b"nfs host:/export", ("nfs", "host:/export")),
        (b"raw /dev/sdb1", ("raw", "/dev/sdb1")),
        (b"ext4 UUID=03138356", ("ext4", "UUID=03138356")),
    ],
)
def test_parse_kdump_conf_other_target_has_no_directory_here(
    line: bytes, target: tuple[str, str]
) -> None:
    conf = parse_kdump_conf(b"path /x\n" + line)
    assert (conf.target, conf.directory) == (target, None)
    assert [f.code for f in conf.findings] == ["other-target"]


def test_parse_kdump_conf_dump_dmesg_is_a_fault() -> None:
    conf = parse_kdump_conf(b"core_collector /sbin/makedumpfile --dump-dmesg -d 31")
    assert [(f.code, f.severity) for f in conf.findings] == [("dump-dmesg", Severity.FAULT)]


@pytest.mark.parametrize(
    ("text", "directory", "keep", "remote"),
    [
        ('KDUMP_SAVEDIR="/var/crash"\nKDUMP_KEEP_OLD_DUMPS="5"', "/var/crash", 5, ""),
        ('KDUMP_SAVEDIR="file:///srv/x"\nKDUMP_KEEP_OLD_DUMPS="-1"', "/srv/x", 0, ""),
        ('KDUMP_SAVEDIR="ssh://u@h/x"', None, 0, "ssh"),
        ('KDUMP_SAVEDIR="NFS://h/x"', None, 0, "nfs"),
        ("KDUMP_KERNELVER=''\nKEXEC_ARGS='-s'", None, 0, ""),
        ("KDUMP_SAVEDIR=$X\nKDUMP_KEEP_OLD_DUMPS=$Y", None, None, ""),
    ],
)
def test_parse_sysconfig_is_read_as_suse_does(
    text: str, directory: str | None, keep: int | None, remote: str
) -> None:
    conf = parse_sysconfig(text.encode())
    assert (conf.directory, conf.max_dumps, conf.remote) == (directory, keep, remote)


def test_parse_sysconfig_traps_are_findings() -> None:
    text = b"KDUMP_SAVEDIR=/x\nKDUMP_DUMPFORMAT=none\nKDUMP_KEEP_OLD_DUMPS=2"
    assert [f.code for f in parse_sysconfig(text).findings] == ["dump-format-none", "other-cleaner"]
    assert parse_sysconfig(b"") == SysconfigKdump()


@pytest.mark.parametrize(
    ("cmdline", "reserved", "panic_on_oops", "expected"),
    [
        (b"crashkernel=512M", 512 * MIB, 1, []),
        (b"quiet", 0, 1, ["no-crashkernel"]),
        (b"crashkernel=auto", 0, 1, ["crashkernel-refused"]),
        (b"crashkernel=96M", 96 * MIB, 1, ["crashkernel-small"]),
        (b"crashkernel=128M", 128 * MIB, 0, ["panic-on-oops"]),
        (b"crashkernel=128M", None, None, []),
    ],
)
def test_find_kernel_traps_tells_what_panics_taught(
    cmdline: bytes, reserved: int | None, panic_on_oops: int | None, expected: list[str]
) -> None:
    found = find_kernel_traps(parse_crashkernel(cmdline), reserved, panic_on_oops)
    assert [finding.code for finding in found] == expected
    assert all(finding.text.isprintable() for finding in found)


@pytest.mark.parametrize("parse", [parse_kdump_tools, parse_kdump_conf, parse_sysconfig])
@pytest.mark.parametrize("raw", [b"A=1\0", b"#" * (CONF_MAX + 1)])
def test_parse_no_text_is_refused(parse: Callable[[bytes], object], raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse(raw)


@given(st.binary(max_size=300))
def test_parse_any_bytes_raises_format_error_only(raw: bytes) -> None:
    for parse in (parse_kdump_tools, parse_kdump_conf, parse_sysconfig):
        with suppress(FormatError):
            parse(b"KDUMP_NUM_DUMPS=" + raw)
