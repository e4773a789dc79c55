from dataclasses import replace

from crashd.cli.check.kdump import render_readiness
from crashd.domain.kdump.ready import assess
from tests.unit.cli.check.test_doctorfacts import READY_FOR_KDUMP

FACTS = replace(
    READY_FOR_KDUMP,
    loaded=False,
    cmdline=b"quiet",
    sysctls={f"some_sysctl_{number}": number for number in range(8)},
)


def test_render_readiness_breaks_lines_between_words_but_no_command() -> None:
    verdict = assess(FACTS)
    assert verdict.findings
    wide = list(render_readiness(FACTS, verdict, color=False))
    narrow = list(render_readiness(FACTS, verdict, color=False, width=60))
    commands = [line for line in wide if line.lstrip().startswith("-> ")]
    assert commands
    assert [line for line in narrow if line.lstrip().startswith("-> ")] == commands
    assert max(len(line) for line in narrow if line not in commands) <= 60
    assert max(map(len, wide)) > 60
    assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(wide).split())
