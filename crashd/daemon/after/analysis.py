"""One analysis, from a stored core to text for a person: the worker's facts, judged and explained,
with a signature.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crashd.analysisresult import is_started, is_whole, parse_report, unfinished
from crashd.domain.cause.analysis import Analysis, AnalysisState, Facts
from crashd.domain.crash.faultlines import error_code_of
from crashd.domain.crash.filesearch import FileSearch
from crashd.domain.crash.model import Crash
from crashd.domain.crash.searchplan import plan_search
from crashd.domain.text import printable
from crashd.edge.sandbox.modulefiles import read_own_mounts
from crashd.edge.sandbox.start import WorkerResult, ask_worker, run_worker
from crashd.errors import FormatError, reason_of

_MAPS_MAX = 4 << 20
_OTHER = re.compile(rb'^\{"other":(\d{1,3})\}\n', re.MULTILINE)  # OTHER_MARK


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """The part of the [analysis] section that one analysis needs."""

    timeout_seconds: float = 60.0
    """Limit of the wall clock, and of CPU time."""
    memory_bytes: int = 512 << 20
    """Address space beyond what the libraries use themselves."""
    python: bool = True
    """Whether to look for the interpreter's stacks."""
    worker_socket: Path | None = None
    """The socket on which systemd starts workers; None to start them ourselves."""
    build_id_dirs: tuple[bytes, ...] = ()
    """Directories with a `.build-id`, besides /usr/lib/debug."""
    crashes: Path | None = None
    """The directory of the entries, which may hold files kept with a crash."""


def analyse(core_fd: int, crash: Crash, options: AnalysisOptions) -> Analysis:
    """Analyse the stored core (core.zst) at a descriptor, which stays the caller's. Blocks for
    `timeout_seconds` at most; call it in a worker process or a thread.

    A hostile core cannot make it raise: if the worker is killed, crashes or prints nonsense, the
    Analysis is FAILED, with the reason.
    """
    return analyse_all([(core_fd, crash)], options)[0] or Analysis(AnalysisState.FAILED)


def analyse_all(
    cores: Sequence[tuple[int, Crash]], options: AnalysisOptions
) -> list[Analysis | None]:
    """Analyse crashes of one program, at least one, in one worker. See `analyse`; None for one
    after the first that has to be analysed alone.
    """
    (core_fd, crash), *others = cores
    request, seconds = _request(crash, [o for _, o in others], options), options.timeout_seconds
    request["others"] = [{"maps": _maps(other)} for _, other in others]
    other_fds = [fd for fd, _ in others]
    if options.worker_socket is None:
        result = run_worker(request, core_fd, seconds, other_fds=other_fds)
    else:
        result = ask_worker(request, core_fd, seconds, options.worker_socket, other_fds=other_fds)
    first, more = _split(result, len(others))
    return [
        _judge(first, crash),
        *(
            _judge(part, other) if part is not None else None
            for part, (_, other) in zip(more, others, strict=True)
        ),
    ]


def _split(result: WorkerResult, others: int) -> tuple[WorkerResult, list[WorkerResult | None]]:
    """Split a worker's output by core; the cost is shared. Of the others only whole results count:
    whatever ended the worker may have been the fault of another.
    """
    first, *parts = _OTHER.split(result.output)
    found: dict[int, bytes] = {}
    for number, output in zip(parts[::2], parts[1::2], strict=True):
        if int(number) < others and is_whole(output):
            found.setdefault(int(number), output)
    count = 1 + len(found)
    shared = replace(
        result,
        seconds=round(result.seconds / count, 3),
        cpu_seconds=round(result.cpu_seconds / count, 3),
    )
    return replace(shared, output=first), [
        replace(shared, output=found[number], failure=None) if number in found else None
        for number in range(others)
    ]


def _judge(result: WorkerResult, crash: Crash) -> Analysis:
    """Explain a worker's result."""
    # imported here: a daemon that has nothing to explain starts a tenth earlier
    from crashd.domain.cause.explain import ProcessContext, explain
    from crashd.domain.cause.signature import build_signature, build_title

    analysis = Analysis(
        AnalysisState.FAILED,
        seconds=result.seconds,
        cpu_seconds=result.cpu_seconds,
        peak_bytes=result.peak_bytes,
    )
    if result.failure is not None and not is_started(result.output):
        return replace(analysis, reason=printable(result.failure))
    try:
        facts = parse_report(result.output)
    except FormatError as e:
        return replace(analysis, reason=printable(reason_of(e)))
    if not is_whole(result.output):  # the native facts are there: a later analyzer failed
        why = printable(result.failure or "the worker broke off")
        part = unfinished(result.output)
        problem = f"the analysis is incomplete: {f'{part}: ' if part else ''}{why}"
        facts = replace(facts, problems=(*facts.problems, problem))
    facts = _with_error_code(_with_names(facts, crash), crash)
    own = frozenset(pid for pid in (crash.pid, crash.ns_pid) if pid)
    cause = explain(facts, ProcessContext(own, crash.user_unit or crash.unit))
    program = program_name(crash)
    signal = crash.signal if crash.signal is not None else facts.signal
    return replace(
        analysis,
        state=AnalysisState.DONE,
        title=build_title(printable(crash.comm), signal, facts, cause),
        signature=build_signature(program, facts, cause),
        explanation=cause.text,
        cause=cause.kind,
        facts=facts,
        warnings=facts.problems,
    )


def analysed(crash: Crash, analysis: Analysis) -> Crash:
    """Add what an analysis found to the crash's record; a failed analysis leaves it unchanged."""
    if analysis.state is not AnalysisState.DONE or analysis.facts is None:
        return crash
    facts = analysis.facts
    threads = [
        {
            "tid": thread.tid,
            "name": thread.name,
            "pc": _hex(thread.frames[0].pc if thread.frames else None),
            "crashed": thread.crashed,
        }
        for thread in facts.threads
    ]
    return replace(
        crash,
        title=analysis.title or crash.title,
        signature=analysis.signature,
        explanation=analysis.explanation,
        threads=tuple(threads) or crash.threads,
        frames=tuple(
            {**asdict(frame), "pc": _hex(frame.pc), "offset": _hex(frame.offset)}
            for frame in (*facts.crashed_interpreted, *facts.crashed)
        ),
    )


def _hex(value: int | None) -> str | None:
    return None if value is None else hex(value)


def _with_error_code(facts: Facts, crash: Crash) -> Facts:
    """Add the processor's error code from the kernel's log; cores do not contain it."""
    info, pc = facts.siginfo, facts.regions.get("pc")
    if info is None or info.error_code is not None or pc is None or facts.handled is not None:
        return facts
    code = error_code_of(crash, info.address, pc.address)
    return facts if code is None else replace(facts, siginfo=replace(info, error_code=code))


def _with_names(facts: Facts, crash: Crash) -> Facts:
    """Add the threads' names, which cores do not contain."""
    names = {t.get("tid"): printable(str(t.get("name") or ""))[:64] for t in crash.threads}
    threads = [replace(t, name=names.get(t.tid) or t.name) for t in facts.threads]
    return replace(facts, threads=tuple(threads))


def program_name(crash: Crash) -> str:
    """Return the executable's name as signatures have it: without directories, or comm if there is
    no path.
    """
    name = crash.exe.removesuffix(b" (deleted)").rpartition(b"/")[2] or crash.comm
    return printable(name)


def _search(crash: Crash, others: Sequence[Crash], options: AnalysisOptions) -> FileSearch:
    """Return where the files of a crash, and of others like it, may be."""
    kept = []
    if options.crashes is not None:
        kept = [os.fsencode(options.crashes / each.id) for each in (crash, *others)]
    return plan_search(crash, options.build_id_dirs, kept, read_own_mounts())


def _maps(crash: Crash) -> str:
    return (crash.maps or b"")[:_MAPS_MAX].decode("latin-1")


def may_share(first: Crash, other: Crash) -> bool:
    """Return whether one worker may analyse both crashes: they are of the same program of the same
    user, and name the same files.
    """
    if (first.exe, first.build_id, first.comm) != (other.exe, other.build_id, other.comm):
        return False
    return first.build_id is not None and plan_search(first) == plan_search(other)


def _request(crash: Crash, others: Sequence[Crash], options: AnalysisOptions) -> dict[str, Any]:
    return {
        "cpu_seconds": max(1, math.ceil(options.timeout_seconds)),
        "memory_bytes": options.memory_bytes,
        "python": options.python,
        "maps": _maps(crash),
        "search": _search(crash, others, options).to_json(),
    }
