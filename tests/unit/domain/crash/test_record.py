"""Whose word counts: what the kernel vouches for beats what the process wrote."""

from dataclasses import replace

import pytest

from crashd.corehandler import PROC_FILES
from crashd.domain.crash.coremeta import CoreMeta
from crashd.domain.crash.model import Capture, Crash, Disposition, Identity, Mode, State
from crashd.domain.crash.procfs import OWN_NAMESPACE
from crashd.domain.crash.record import (
    Allowance,
    ProcessCredentials,
    RecordLimits,
    add_head,
    add_process,
    allow,
    describe,
    new_crash,
    owner_of,
)
from crashd.domain.elf.auxv import AT_EUID, AT_SECURE, AT_UID
from crashd.domain.elf.elfcore import CoreHead, SigInfo, Thread

UNLIMITED = 2**64 - 1
SNAPSHOT = {
    "comm": b"prog",
    "exe": b"/usr/bin/prog",
    "cwd": b"/srv",
    "root": b"/",
    "cmdline": b"prog\0--password=x\0\xff\0",
    "environ": b"LANG=C\0API_TOKEN=abc123\0",
    "status": b"Name:\tprog\nUid:\t5\t5\t5\t5\nGid:\t6\t6\t6\t6\nNSpid:\t100\t7\nCoreDumping:\t1\n",
    "cgroup": b"0::/system.slice/web.service\n",
    "threads": b"100 prog\n101 worker",
    "limits": b"Max core file size        0                    unlimited            bytes     \n",
}
CREDENTIALS = ProcessCredentials((1000,) * 4, (1001,) * 4, 5, OWN_NAMESPACE)
PLAIN_STATUS, POWERFUL_STATUS = b"CapPrm:\t%016x\n" % 0, b"CapPrm:\t%016x\n" % (1 << 13)
AUXV = {AT_SECURE: 0, AT_UID: 1000, AT_EUID: 1000}


def meta(**more: bytes) -> CoreMeta:
    fields = {
        "token": b"a-b-c",
        "seen_ns": b"1800000000000000000",
        "p": b"100",
        "e": b"worker",
        "s": b"11",
        "t": b"1800000000",
        "P": b"100",
        "I": b"101",
        "u": b"1000",
        "g": b"1001",
        "c": b"18446744073709551615",
        "d": b"1",
        "h": b"box",
        "identity": b"kernel",
        **more,
    }
    return CoreMeta.from_fields(fields, 1)


def crash(*, has_pidfd: bool = True, **more: bytes) -> Crash:
    return new_crash(
        meta(**more),
        mode=Mode.PIPE,
        boot_id="0123abcd" * 4,
        hostname=b"host",
        has_pidfd=has_pidfd,
        random=42,
    )


def with_process(base: Crash, snapshot: dict[str, bytes] | None = None) -> Crash:
    found = SNAPSHOT if snapshot is None else snapshot
    return add_process(base, found, CREDENTIALS, environ_mode="scrub", patterns=())


def head(**more: object) -> CoreHead:
    values: dict[str, object] = {
        "machine": 62,
        "bits": 64,
        "byteorder": "little",
        "segments": (),
        "expected_size": 1,
        "threads": (Thread(101, 11, 0x401000, 0), Thread(100, 0, None, None)),
        "siginfo": SigInfo(11, 1, 0, 0x10, None, None),
        "auxv": AUXV,
        **more,
    }
    return CoreHead(**values)  # type: ignore[arg-type]


def test_new_crash_is_capturing_with_what_the_handler_said() -> None:
    made = crash()
    assert made.state is State.CAPTURING
    assert made.id.startswith("20270115t080000-0123abcd-100-")
    assert (made.pid, made.tid, made.uid, made.comm) == (100, 101, 1000, b"worker")
    assert made.capture.identity is Identity.KERNEL
    assert made.title == "SIGSEGV in worker"


def test_new_crash_without_a_pidfd_has_no_identity() -> None:
    assert crash(has_pidfd=False).capture.identity is Identity.NONE


def test_new_crash_names_what_was_malformed() -> None:
    assert crash(s=b"-3").warnings == ("handler: %s is b'-3'",)


def test_add_process_fills_in_and_scrubs() -> None:
    made = with_process(crash())
    assert (made.exe, made.cwd, made.unit) == (b"/usr/bin/prog", b"/srv", "web.service")
    assert made.argv == (b"prog", b"--password=x", b"\xff")
    assert made.environ == (b"LANG=C", b"API_TOKEN=<scrubbed>")
    assert made.comm == b"prog", "the process's name, not the thread's"
    assert made.thread_comm == b"worker"


def test_add_process_the_threads_own_name_has_its_slashes() -> None:
    threads = SNAPSHOT | {"threads": b"100 prog\n101 CPU 0/KVM\n102 CPU 0!KVM"}
    assert with_process(crash(e=b"CPU 0!KVM"), threads).thread_comm == b"CPU 0/KVM"
    assert with_process(crash(e=b"CPU 0!KVM", I=b""), threads).thread_comm == b"CPU 0/KVM"
    assert with_process(crash(e=b""), threads).thread_comm == b"CPU 0/KVM", "the kernel's socket"
    assert with_process(crash(e=b"other"), threads).thread_comm == b"other", "renamed meanwhile"
    assert with_process(crash(e=b"a!b"), SNAPSHOT | {"threads": b""}).thread_comm == b"a!b"


def test_add_process_replaced_files_are_told() -> None:
    line = b"7f0000000000-7f0000001000 r-xp 00000000 08:01 %d %s (deleted)\n"
    maps = b"".join(line % (n, name) for n, name in enumerate((b"/p", b"/l/a.so", b"/l/b.so"), 1))
    found = with_process(crash(), SNAPSHOT | {"exe": b"/p (deleted)", "maps": maps}).warnings
    assert found == (
        "the executable was deleted or replaced after the process started",
        "deleted or replaced after the process loaded it: a.so, and 1 more",
    )
    memory = {"exe": b"/memfd:x (deleted)", "maps": line % (1, b"/memfd:x")}
    assert with_process(crash(), SNAPSHOT | memory).warnings == ()


def test_add_process_kernels_uid_beats_that_of_proc() -> None:
    assert with_process(crash()).uid == 1000


def test_add_process_pidfds_uid_beats_that_of_proc_where_argv_says_none() -> None:
    assert with_process(crash(u=b"", g=b"")).uid == 1000
    made = add_process(crash(u=b"", g=b""), SNAPSHOT, None, environ_mode="drop", patterns=())
    assert (made.uid, made.gid, made.environ) == (5, 6, None)


def test_add_process_cut_is_told_and_whole_is_not() -> None:
    long = {"cmdline": b"x" * PROC_FILES["cmdline"], "maps": b"y" * PROC_FILES["maps"]}
    many = {"open_fds": b"0:a\n1:b", "fd_count": b"60000", "status": b"Threads:\t3000\n"}
    assert with_process(crash(), SNAPSHOT | long | many).warnings == (
        f"maps is cut after {8 << 20} bytes",
        f"cmdline is cut after {1 << 16} bytes",
        "2 of 3000 threads are named",
        "2 of 60000 open files are listed",
    )
    whole = {"open_fds": b"0:a\n1:b", "fd_count": b"2", "status": b"Threads:\t2\n"}
    assert with_process(crash(), SNAPSHOT | whole).warnings == ()


def test_add_process_gone_is_a_warning_and_nothing_is_invented() -> None:
    made = with_process(crash(), {})
    assert (made.exe, made.unit, made.argv) == (b"", None, ())
    assert "the process was gone" in made.warnings[0]


def test_add_head_explains_by_the_notes() -> None:
    made = add_head(with_process(crash()), head())
    assert (made.si_code, made.fault_address) == (1, 0x10)
    assert made.title == "SIGSEGV in prog: NULL pointer dereference at 0x10 (address not mapped)"
    assert [(t["tid"], t["name"], t["crashed"]) for t in made.threads] == [
        (101, "worker", True),
        (100, "prog", False),
    ]


def test_add_head_note_of_another_signal_is_not_believed() -> None:
    made = add_head(crash(s=b"6"), head())
    assert (made.signal, made.si_code, made.fault_address) == (6, None, None)
    assert made.title == "SIGABRT in worker"


def test_add_head_sent_signal_names_the_sender() -> None:
    made = add_head(crash(), head(siginfo=SigInfo(11, 0, 0, None, 77, 1000)))
    assert (made.sender_pid, made.sender_uid) == (77, 1000)
    assert made.title == "SIGSEGV in worker: sent by pid 77 (uid 1000)"


def test_add_head_signal_raised_by_itself_says_so() -> None:
    made = add_head(crash(p=b"7"), head(siginfo=SigInfo(11, -6, 0, None, 7, 1000)))
    assert made.title == "SIGSEGV in worker: raised by the process itself"


def test_add_head_in_another_pid_namespace_keeps_the_hosts_tid_unknown() -> None:
    made = add_head(crash(p=b"7", I=b""), head())
    assert made.tid is None


def test_add_head_signal_of_the_notes_where_the_handler_had_none() -> None:
    assert add_head(crash(s=b"x"), head()).signal == 11


def test_owner_of_ordinary_process_is_its_user() -> None:
    assert owner_of(replace(crash(), status=PLAIN_STATUS), head(), CREDENTIALS) == 1000


@pytest.mark.parametrize(
    ("status", "namespace", "owner"),
    [
        (POWERFUL_STATUS, OWN_NAMESPACE, None),
        (b"CapPrm:\t00000000000", OWN_NAMESPACE, None),
        (b"Name:\tCapPrm\n", OWN_NAMESPACE, None),
        (b"", OWN_NAMESPACE, None),
        (None, OWN_NAMESPACE, None),
        (PLAIN_STATUS, b"", None),
        (PLAIN_STATUS, b"0", None),
        (PLAIN_STATUS, b"1001", None),
        (PLAIN_STATUS, b"1000", 1000),
        (POWERFUL_STATUS, b"1000", 1000),
        (POWERFUL_STATUS, b"0", None),
    ],
)
def test_owner_of_has_all_capabilities_of_the_process(
    status: bytes | None, namespace: bytes, owner: int | None
) -> None:
    made, credentials = replace(crash(), status=status), replace(CREDENTIALS, namespace=namespace)
    assert owner_of(made, head(), credentials) == owner


@pytest.mark.parametrize(
    ("fields", "credentials", "auxv"),
    [
        ({"d": b"2"}, CREDENTIALS, AUXV),
        ({"d": b""}, CREDENTIALS, AUXV),
        ({"u": b""}, CREDENTIALS, AUXV),
        ({"g": b"7"}, CREDENTIALS, AUXV),
        ({"identity": b"opened"}, CREDENTIALS, AUXV),
        ({}, None, AUXV),
        ({}, replace(CREDENTIALS, coredump_mask=None), AUXV),
        ({}, replace(CREDENTIALS, coredump_mask=9), AUXV),
        ({}, replace(CREDENTIALS, uids=None), AUXV),
        ({}, replace(CREDENTIALS, uids=(1000, 0, 1000, 1000)), AUXV),
        ({}, replace(CREDENTIALS, uids=(1000, 1000, 0, 1000)), AUXV),
        ({}, replace(CREDENTIALS, gids=(1001, 1001, 0, 1001)), AUXV),
        ({}, CREDENTIALS, {**AUXV, AT_SECURE: 1}),
        ({}, CREDENTIALS, {**AUXV, AT_UID: 0}),
        ({}, CREDENTIALS, {**AUXV, AT_EUID: 0}),
        ({}, CREDENTIALS, {AT_UID: 1000, AT_EUID: 1000}),
    ],
)
def test_owner_of_any_doubt_is_root_only(
    fields: dict[str, bytes], credentials: ProcessCredentials | None, auxv: dict[int, int]
) -> None:
    made = replace(crash(has_pidfd=True, **fields), status=PLAIN_STATUS)
    assert owner_of(made, head(auxv=auxv), credentials) is None


def test_owner_of_unread_core_is_root_only() -> None:
    made = replace(crash(), status=PLAIN_STATUS)
    assert owner_of(made, None, CREDENTIALS) is None


@pytest.mark.parametrize(
    ("rlimit", "max_core", "honour", "size", "disposition"),
    [
        (UNLIMITED, None, True, 2**63 - 1, Disposition.FULL),
        (UNLIMITED, 5000, True, 5000, Disposition.FULL),
        (0, None, True, 0, Disposition.METADATA),
        (4095, None, True, 0, Disposition.METADATA),
        (4096, None, True, 4096, Disposition.FULL),
        (8192, 5000, True, 5000, Disposition.FULL),
        (0, None, False, 2**63 - 1, Disposition.FULL),
        (None, None, True, 2**63 - 1, Disposition.FULL),
        (UNLIMITED, 0, True, 0, Disposition.METADATA),
    ],
)
def test_allow_takes_the_smallest_limit(
    rlimit: int | None, max_core: int | None, honour: bool, size: int, disposition: Disposition
) -> None:
    base = replace(crash(), rlimit_core=rlimit, capture=Capture())
    found = allow(base, max_core=max_core, honour_rlimit=honour)
    assert (found.size_bytes, found.disposition) == (size, disposition)


def test_allow_limit_not_asked_for_by_the_pattern_is_not_enforced() -> None:
    made = with_process(crash(c=b""))
    assert allow(made, max_core=None, honour_rlimit=True).disposition is Disposition.FULL


def test_describe_adds_process_core_owner_and_limit() -> None:
    snapshot = {**SNAPSHOT, "status": SNAPSHOT["status"] + PLAIN_STATUS}
    limits = RecordLimits(max_core=5000, honour_rlimit=True, environ="scrub", patterns=())
    found, limit = describe(crash(), snapshot, head(auxv=AUXV), CREDENTIALS, limits)
    assert (found.exe, found.unit) == (b"/usr/bin/prog", "web.service")
    assert b"API_TOKEN=abc123" not in (found.environ or ())
    assert found.owner_uid == 1000
    assert [thread["tid"] for thread in found.threads] == [t.tid for t in head().threads]
    assert (limit.size_bytes, limit.reason) == (5000, "capture.max_core is 5000 bytes")


def test_describe_without_a_head_leaves_the_crash_to_root() -> None:
    limits = RecordLimits(max_core=None, honour_rlimit=False, environ="drop", patterns=())
    found, limit = describe(crash(), SNAPSHOT, None, CREDENTIALS, limits)
    assert (found.owner_uid, found.environ) == (None, None)
    assert limit.disposition is Disposition.FULL


@pytest.mark.parametrize(
    ("size", "spooled", "unlimited"),
    [
        (40 << 20, None, False),
        (40 << 20, 40 << 20, True),
        (40 << 20, (40 << 20) + (1 << 16), True),
        (40 << 20, 42 << 20, False),  # the limit was another one then
        (8192, 1 << 20, False),  # the head of a core that its limit forbids
        (0, 0, False),
    ],
)
def test_allowance_for_spooled_is_not_counted_a_second_time(
    size: int, spooled: int | None, unlimited: bool
) -> None:
    limit = Allowance(size, Disposition.FULL, "a limit")
    found = limit.for_spooled(spooled)
    assert found == (replace(limit, size_bytes=(1 << 63) - 1) if unlimited else limit)


def test_allowance_is_lowered_and_never_raised() -> None:
    limit = Allowance(5000, Disposition.FULL, "a limit")
    assert limit.lowered(Disposition.FULL, "x") == limit
    assert limit.lowered(Disposition.MINI, "a loop") == Allowance(5000, Disposition.MINI, "a loop")
    assert limit.lowered(Disposition.METADATA, None) == Allowance(
        0, Disposition.METADATA, "a limit"
    )
