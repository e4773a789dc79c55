import pytest

from crashd.domain.kdump.troubles import LINE_MAX, TROUBLES_MAX, find_troubles

LOG = b"""[    0.000000] Linux version 6.1.0
[    1.200000] kdump: dump target is /dev/vda1
[    2.000000] kdump.sh[391]: Copying data : [  0.0 %] -
[    2.100000] kdump[390]: saving vmcore
[    3.000000] kdump.sh[391]: Can't write the dump file(/x). No space left on device
[    3.100000] kdump[400]: saving vmcore failed, exitcode:1
[    3.200000] systemd[1]: Reached target Basic System.
"""


def test_lines_that_say_why_the_dump_failed_are_found() -> None:
    assert [line.partition("] ")[2][:30] for line in find_troubles(LOG)] == [
        "kdump.sh[391]: Can't write the",
        "kdump[400]: saving vmcore fail",
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"Out of memory: Killed process 300 (makedumpfile)", True),
        (b"makedumpfile Failed.", True),
        (b"blk_update_request: I/O error, dev sda, sector 12", True),
        (b"The kernel version is not supported. makedumpfile may error out", True),
        (b"systemd[1]: foo.service: Failed with result 'exit-code'.", False),
        (b"kdump: dump target is /dev/vda1", False),
        (b"", False),
    ],
)
def test_line_counts_where_it_is_about_the_dump(line: bytes, found: bool) -> None:
    assert bool(find_troubles(line)) is found


def test_long_and_hostile_logs_are_bounded() -> None:
    found = find_troubles(
        b"\n".join(b"makedumpfile error %d \x1b[2J" % n + b"x" * 5000 for n in range(999))
    )
    assert len(found) == TROUBLES_MAX
    assert all(line.isprintable() and len(line) <= LINE_MAX + 20 for line in found)
    assert found[-1].startswith("makedumpfile error 998")
