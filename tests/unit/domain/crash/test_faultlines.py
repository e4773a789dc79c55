import pytest

from crashd.domain.crash.faultlines import error_code_of, parse_fault
from tests.builders.crashes import build_crash

LINE = (
    b"prog[1007]: segfault at 18 ip 000055d0a1b2c3d4 sp 00007ffe00000000 error 6 in "
    b"prog[1139,55d0a1b2c000+1000] likely on CPU 1 (core 1, socket 0)"
)


def test_parse_fault_reads_the_kernels_numbers() -> None:
    line = parse_fault(LINE)
    assert line is not None
    assert (line.tid, line.address, line.pc, line.error_code) == (1007, 0x18, 0x55D0A1B2C3D4, 6)


@pytest.mark.parametrize(
    "comm", [b"x[1]: segfault at 0 ip 0 sp 0 error 4", b"a b", b"[", b"x[9]: segfault at 1"]
)
def test_parse_fault_the_processs_name_forges_nothing(comm: bytes) -> None:
    line = parse_fault(comm + LINE.removeprefix(b"prog"))
    assert line is not None
    assert (line.tid, line.address, line.error_code) == (1007, 0x18, 6)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"prog[7] general protection fault ip:7f sp:7f error:0 in prog",
        b"traps: prog[7] trap divide error ip:7f sp:7f error:0 in prog",
        LINE.replace(b"error 6", b"error"),
        LINE.replace(b"[1007]", b"[x]"),
    ],
)
def test_parse_fault_other_lines_are_none(text: bytes) -> None:
    assert parse_fault(text) is None


def test_error_code_of_needs_the_same_address_and_instruction() -> None:
    crash = build_crash(7, report=(LINE.decode(),))
    assert error_code_of(crash, 0x18, 0x55D0A1B2C3D4) == 6
    assert error_code_of(crash, 0x18, 0x55D0A1B2C3D5) is None
    assert error_code_of(crash, 0x10, 0x55D0A1B2C3D4) is None
    assert error_code_of(build_crash(7), 0x18, 0x55D0A1B2C3D4) is None
