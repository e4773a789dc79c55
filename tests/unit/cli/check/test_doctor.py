import pytest

from crashd.cli.check.doctor import render_check
from crashd.domain.host.doctor import WHY, Check, Level

CHECK = Check(
    "suid_dumpable",
    Level.WARNING,
    "0: crashes of set-user-ID programs leave no trace, and nobody is told",
    "sysctl fs.suid_dumpable=2 && systemctl restart crashd.service, on the host",
)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_render_check_breaks_lines_between_words_but_no_command(width: int) -> None:
    lines = list(render_check(CHECK, color=False, width=width))
    *others, command = lines
    assert max(map(len, others)) <= width
    assert command.strip() == f"-> {CHECK.hint}"
    assert (
        " ".join(" ".join(others).split())
        == f"warning suid_dumpable {CHECK.text} " + WHY[CHECK.name]
    )


def test_render_check_in_a_pipe_has_a_line_for_each_thing() -> None:
    lines = list(render_check(CHECK, color=False, width=None))
    assert lines == [
        f"warning  suid_dumpable    {CHECK.text}",
        " " * 26 + CHECK.why,
        f"{'':26}-> {CHECK.hint}",
    ]
    coloured = list(render_check(CHECK, color=True, width=None))
    assert coloured[0] == f"\x1b[33mwarning\x1b[0m  suid_dumpable    {CHECK.text}"
