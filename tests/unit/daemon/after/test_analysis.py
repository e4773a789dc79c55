"""What an analysis does to a crash's record."""

from dataclasses import replace

import pytest

from crashd.daemon.after.analysis import _judge, analysed, program_name
from crashd.domain.cause.analysis import Analysis, AnalysisState, Frame
from crashd.domain.crash.model import from_json, to_json
from crashd.edge.sandbox.start import WorkerResult
from tests.builders.crashes import build_crash
from tests.builders.facts import build_facts
from tests.unit.test_analysisresult import build_report, line


def test_analysed_done_fills_the_record() -> None:
    script = Frame("run", None, None, None, None, file="/srv/job.py", line=3, kind="python")
    facts = build_facts("third", "main", python=(script,))
    analysis = Analysis(
        AnalysisState.DONE,
        title="SIGSEGV in prog, third(): …",
        signature="p1-0123456789abcdef",
        explanation="because",
        facts=facts,
    )
    crash = analysed(build_crash(), analysis)
    assert (crash.title, crash.signature) == (analysis.title, analysis.signature)
    assert crash.explanation == "because"
    assert [frame["function"] for frame in crash.frames] == ["run", "third", "main"]
    assert crash.threads[0]["crashed"] is True
    assert crash.threads[0]["pc"] == crash.frames[1]["pc"] == "0x401000"
    assert crash.frames[0]["pc"] is None
    assert from_json(to_json(crash)) == crash


def test_analysed_failed_changes_nothing() -> None:
    crash = build_crash(title="old")
    assert analysed(crash, Analysis(AnalysisState.FAILED, "it crashed")) == crash


@pytest.mark.parametrize(
    ("exe", "name"),
    [
        (b"/usr/bin/prog", "prog"),
        (b"/usr/bin/prog (deleted)", "prog"),
        (b"", "comm"),
        (b"/opt/\x1b[2J", "\\x1b[2J"),
    ],
)
def test_program_name_is_the_executables(exe: bytes, name: str) -> None:
    assert program_name(replace(build_crash(), exe=exe, comm=b"comm")) == name


def test_judge_worker_that_died_names_the_part_that_is_missing() -> None:
    """The native facts stay; the record says why there is no Python stack."""
    output = line(build_report(problems=[])) + line({"begun": "Python stacks"})
    analysis = _judge(WorkerResult(output, "it crashed (SIGSEGV)"), build_crash())
    assert analysis.state is AnalysisState.DONE
    expected = "the analysis is incomplete: Python stacks: it crashed (SIGSEGV)"
    assert analysis.warnings == (expected,)
